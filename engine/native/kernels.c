/* The engine's operators on a CPU, in float32. What is summed is in one order whatever the batch, so that a line's
 * result does not depend on the lines beside it. NaN goes through everywhere. */

#define _GNU_SOURCE
#include <math.h>
#include <string.h>

#include "vectors.h"

#include "threads.h"

#include "between.h"

#include "attention.h"

#include "products.h"
