"""Serve demo.py as a busy machine does: the thread that talks to the browser is held up each time that it sends."""

import runpy
import time

from browsing import ROOT
from streamlit.runtime.app_session import AppSession

if not hasattr(AppSession, 'flush'):
    AppSession.flush = AppSession.flush_browser_queue

    def flush_late(session):
        time.sleep(0.1)
        return session.flush()

    AppSession.flush_browser_queue = flush_late

runpy.run_path(str(ROOT / 'demo.py'))
