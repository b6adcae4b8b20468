"""Fetches pages with httpx, requests and urllib, and prints a line for each.

    python3 fetch.py CA-FILE HTTP-URL HTTPS-URL PORT...
"""
import inspect
import ssl
import sys
import urllib.request

import httpx
import requests

ca, plain, tls, *ports = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
for port in ports:
    proxy = "http://127.0.0.1:" + port
    # The parameter's name depends on the version.
    new = "proxy" in inspect.signature(httpx.Client).parameters
    client = httpx.Client(verify=context, trust_env=False, **({"proxy": proxy} if new else {"proxies": proxy}))
    session = requests.Session()
    session.trust_env = False
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({"http": proxy, "https": proxy}), urllib.request.HTTPSHandler(context=context))
    for url in plain, tls:
        for _ in range(2):  # the second request has the first one's connection
            print("httpx:", client.get(url).text, end="")
            print("requests:", session.get(url, proxies={"http": proxy, "https": proxy}, verify=ca).text, end="")
        print("urllib:", opener.open(url).read().decode(), end="")
