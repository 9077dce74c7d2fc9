"""Serve the page of demo.py or that of docs/try and open it in a browser, for tests and pictures."""

import contextlib
import functools
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
ARGS = ['--no-sandbox', '--disable-gpu', '--disable-background-networking']


@contextlib.contextmanager
def served(log, *argv, script='demo.py'):
    """Serve the page with these arguments and give its address. log: a path for what the server writes."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'streamlit', 'run', script, f'--server.port={port}', '--', *argv]
    with open(log, 'wb') as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as server:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f'http://127.0.0.1:{port}/_stcore/health')
                    break
                except OSError:
                    assert server.poll() is None, Path(log).read_text()
                    time.sleep(0.1)
            yield f'http://127.0.0.1:{port}'
        finally:
            server.terminate()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Write no line for each request."""


@contextlib.contextmanager
def folder_served(folder):
    """Serve the files of a folder and give the address."""
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def chromium(playwright):
    """Start the browser. Raises FileNotFoundError if there is no chromium."""
    if not CHROMIUM:
        raise FileNotFoundError('no chromium: apt-get install chromium, or set CHROMIUM')
    return playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)


def settled(page, rest=100):
    """Wait until the script behind the page has rested for so many milliseconds. It also pauses between two runs.

    From a click on, the page counts as not resting; a slider waits for 200 ms before it reports what it shows.
    """
    page.evaluate('window.restingSince = performance.now()')
    page.wait_for_function(
        """rest => {
        const state = document.querySelector('[data-testid=stApp]').dataset.testScriptState
        if (state !== 'notRunning') window.restingSince = performance.now()
        return performance.now() - window.restingSince > rest
    }""",
        arg=rest,
    )
