"""Stand in for the Hugging Face Hub at 127.0.0.1: the routes by which huggingface_hub downloads and commits."""

import base64
import hashlib
import json
import os
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from runs import Forked

LARGE = '.safetensors', '.bin', '.pt', '.parquet'  # what the Hub keeps by SHA-256; other files are git's
PIECE = 1 << 16  # bytes
TOKEN = 'hf_of_the_owner'


def digest(path, content):
    """Return the digest by which the Hub names a file's content."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


def commit_of(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


def files_of(folder):
    """Return {path: bytes} of the files in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


class Hub(ThreadingHTTPServer):
    """A Hub that holds {repository: {revision: {path: bytes}}}. A data set is named datasets/OWNER/NAME."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.repos, self.private, self.asked, self.uploads, self.cards = {}, set(), [], {}, []
        self.cut, self.spoilt = set(), set()  # paths whose next download breaks off, or that come with other bytes
        self.silent = set()  # revisions for which the server fails
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f'http://127.0.0.1:{self.server_port}'

    def environment(self, cache, **others):
        """Return the variables with which huggingface_hub uses this Hub and a cache of its own."""
        ours = {'HF_ENDPOINT': self.address, 'HF_HOME': str(cache), 'HF_HUB_CACHE': f'{cache}/hub', 'HF_TOKEN': ''}
        return {**ours, 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_OFFLINE': '0', **others}


def main_py(server, cache, log, *argv, **variables):
    """Run main.py with a server as its Hub and a cache -> (exit status, stderr)."""
    child = Forked(*argv, log=log, before=partial(enter, server.environment(cache, **variables)))
    return child.status(), child.error()


def enter(values):
    """Set these environment variables in a new process, and let huggingface_hub write small pieces of small files."""
    os.environ.update(values)
    from huggingface_hub import constants  # reads the variables

    constants.DOWNLOAD_CHUNK_SIZE = PIECE


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def answer(self, content=b'', status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {'Content-Length': len(content), **headers}.items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def refuse(self, status, code):
        self.answer({'error': code}, status, X_Error_Code=code)

    def files(self, repo, revision):
        """Return {path: bytes} and the commit, or None, None after refusing."""
        allowed = repo not in self.server.private or self.headers.get('Authorization') == f'Bearer {TOKEN}'
        if repo not in self.server.repos or not allowed:
            self.refuse(401 if not self.headers.get('Authorization') else 404, 'RepoNotFound')
            return None, None
        if revision in self.server.silent:
            self.refuse(503, 'Busy')
            return None, None
        for name, files in self.server.repos[repo].items():
            if revision in (name, commit_of(name)):
                return files, commit_of(name)
        self.refuse(404, 'RevisionNotFound')
        return None, None

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip('/').split('/')]
        self.server.asked.append((self.command, '/'.join(parts), self.headers.get('Range')))
        at_data = parts[0] == 'datasets' or parts[:2] == ['api', 'datasets']
        above = 'datasets/' if at_data else ''
        if parts[0] == 'api':
            repo, kind, revision = above + '/'.join(parts[2:4]), *(parts[4:6] or ['revision', 'main'])
            files, commit = self.files(repo, revision)
            if files is not None and kind == 'revision':
                self.answer({'id': repo, 'sha': commit, 'siblings': [{'rfilename': path} for path in files]})
            elif files is not None:
                self.answer([self.listed(path, content) for path, content in files.items()])
        else:
            parts = parts[1:] if at_data else parts
            repo, revision, path = above + '/'.join(parts[:2]), parts[3], '/'.join(parts[4:])
            files, commit = self.files(repo, revision)
            if files is not None and path not in files:
                self.refuse(404, 'EntryNotFound')
            elif files is not None:
                self.give(path, files[path], commit)

    do_HEAD = do_GET

    def listed(self, path, content):
        large = {'lfs': {'oid': digest(path, content), 'size': len(content), 'pointerSize': 130}}
        oid = hashlib.sha1(b'pointer').hexdigest() if path.endswith(LARGE) else digest(path, content)
        entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': oid}
        return {**entry, **(large if path.endswith(LARGE) else {})}

    def give(self, path, content, commit):
        about = {'ETag': f'"{digest(path, content)}"', 'X_Repo_Commit': commit, 'Accept_Ranges': 'bytes'}
        if path in self.server.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int((self.headers.get('Range') or 'bytes=0-').removeprefix('bytes=').split('-')[0])
        if start:
            about['Content_Range'] = f'bytes {start}-{len(content) - 1}/{len(content)}'
        if self.command == 'GET' and path in self.server.cut:
            self.server.cut.remove(path)
            self.send_response(200)
            for name, value in {'Content-Length': len(content), **about}.items():
                self.send_header(name.replace('_', '-'), str(value))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.answer(content[start:], 206 if start else 200, **about)

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, None))
        if path == '/api/validate-yaml':
            self.server.cards.append(json.loads(body)['content'])
            self.answer({'errors': [], 'warnings': []})
        elif self.headers.get('Authorization') != f'Bearer {TOKEN}':
            self.refuse(401, 'Unauthorized')
        elif path == '/api/repos/create':
            asked = json.loads(body)
            repo = f'{asked["organization"]}/{asked["name"]}'
            new = repo not in self.server.repos
            self.server.repos.setdefault(repo, {'main': {}})
            self.answer({'url': f'{self.server.address}/{repo}'}, 200 if new else 409)
        elif '/preupload/' in path:
            modes = {
                each['path']: 'lfs' if each['path'].endswith(LARGE) else 'regular' for each in json.loads(body)['files']
            }
            self.answer(
                {'files': [{'path': each, 'uploadMode': mode, 'shouldIgnore': False} for each, mode in modes.items()]}
            )
        elif path.endswith('/objects/batch'):
            objects = json.loads(body)['objects']
            links = [{'upload': {'href': f'{self.server.address}/upload/{each["oid"]}'}} for each in objects]
            self.answer({'objects': [{**each, 'actions': link} for each, link in zip(objects, links, strict=True)]})
        else:
            self.commit(*path.removeprefix('/api/models/').split('/commit/'), map(json.loads, body.splitlines()))

    def do_PUT(self):
        content = self.rfile.read(int(self.headers['Content-Length']))
        self.server.uploads[self.path.rpartition('/')[2]] = content
        self.answer()

    def commit(self, repo, revision, lines):
        files = self.server.repos[repo].get(revision)
        if files is None:
            self.refuse(404, 'RevisionNotFound')
            return
        for line in lines:
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif line['key'] == 'lfsFile':
                files[value['path']] = self.server.uploads[value['oid']]
        commit = commit_of(revision)
        self.answer(
            {'success': True, 'commitOid': commit, 'commitUrl': f'{self.server.address}/{repo}/commit/{commit}'}
        )
