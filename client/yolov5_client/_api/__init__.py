"""The REST service: plain HTTP in front of a server's endpoints, on Starlette and uvicorn.

The way of a request: `observe.py` (id, log, metrics) -> `guard.py` (who may ask) -> `detect.py` or
`deepstack.py`, which read it with `request_images.py`, ask the server with `AsyncClient`, and
answer. An error on the way becomes a problem, `problems.py`. `app.py` puts them together.
"""
