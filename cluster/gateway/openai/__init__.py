"""The OpenAI HTTP front door: FastAPI on uvicorn, in the gateway's own loop."""
