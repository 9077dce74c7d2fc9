"""Serve demo.py as a busy machine does: what the browser is to be told waits for a fifth of a second."""

import runpy
import time

from browsing import ROOT
from streamlit.runtime.app_session import AppSession

if not hasattr(AppSession, 'sent_at'):
    AppSession.sent_at, flush = 0, AppSession.flush_browser_queue

    def flush_later(session):
        if time.monotonic() < session.sent_at + 0.2:
            return []
        session.sent_at = time.monotonic()
        return flush(session)

    AppSession.flush_browser_queue = flush_later

runpy.run_path(str(ROOT / 'demo.py'))
