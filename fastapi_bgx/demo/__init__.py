"""The demo: a real server, real requests, and what the library did for each of them.

`python -m fastapi_bgx.demo`. The application that it shows is `app.py`; start reading there.
"""
