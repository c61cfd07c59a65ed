"""Ways to choose a route, behind one seam."""
