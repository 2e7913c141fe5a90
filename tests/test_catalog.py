"""Downloads against a real server on this computer that behaves well and badly, hostile archives, and the real sets."""
import dataclasses, hashlib, http.server, io, os, subprocess, sys, tarfile, threading, zipfile
from pathlib import Path
import numpy as np, pytest
from medkit.catalog import *
from medkit.catalog import PER_CLASS, shutil
from medkit.core import MedkitError, cache_dir

# A server whose every address is a function of the request --------------------------------------------------------

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.pages, self.asked, self.closing = {}, [], threading.Event()
        self.url = f'http://127.0.0.1:{self.server_port}'

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        page(self) if page else self.send_error(404)
    def log_message(self, *args): pass
    def send(self, data, length=None):
        self.send_response(200)
        self.send_header('Content-Length', str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path_factory):
    "MedMNIST's own folder in the home of who runs the tests must not be found"
    for key in ('HOME', 'USERPROFILE'): monkeypatch.setenv(key, str(tmp_path_factory.mktemp('home')))

@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    s = Server()
    threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
    yield s
    s.closing.set(); s.shutdown(); s.server_close()

def whole(data): return lambda h: h.send(data)
def cut(data): return lambda h: h.send(data[:len(data)//2], length=len(data))
def stalled(data):
    def page(h): h.send(data[:len(data)//2], length=len(data)); h.wfile.flush(); h.server.closing.wait(20)
    return page

@pytest.fixture
def at(server, monkeypatch):
    "Move a set of the catalog to the server, with the checksum of `data`"
    def move(name, file, data, size=None, page=whole):
        key, e = size_key(entry(name), size), entry(name)
        server.pages[f'/{file}'] = page(data)
        e = dataclasses.replace(e, url={**e.url, key: f'{server.url}/{file}?download=1'}, md5={**e.md5, key: hashlib.md5(data).hexdigest()}, bytes={**e.bytes, key: len(data)})
        server.pages[f'/{file}?download=1'] = server.pages[f'/{file}']
        monkeypatch.setitem(ENTRIES, name, e)
        return data
    return move

def left(): return sorted(p.relative_to(cache_dir()).as_posix() for p in cache_dir().rglob('*') if not p.is_dir() or p.name.startswith('.part'))

def npz(n=4):
    b = io.BytesIO()
    np.savez(b, **{f'{s}_{k}': np.zeros((n, 28, 28, 3) if k == 'images' else (n, 1), np.uint8) for s in ('train', 'val', 'test') for k in ('images', 'labels')})
    return b.getvalue()

def tar(*infos, mode='w'):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode=mode) as t:
        for i in infos: t.addfile(i, io.BytesIO(bytes(i.size)) if i.isreg() else None)
    return b.getvalue()

def member(name, size=0, **kw):
    i = tarfile.TarInfo(name); i.size = size
    for k, v in kw.items(): setattr(i, k, v)
    return i

HEART = tar(member('Task02_Heart', type=tarfile.DIRTYPE, mode=0o755), member('Task02_Heart/dataset.json', 2), member('Task02_Heart/imagesTr/la_003.nii.gz', 50),
            member('Task02_Heart/imagesTr/._la_003.nii.gz', 9))

# The right file --------------------------------------------------------------------------------------------------

def test_file(server, at):
    data = at('dermamnist', 'dermamnist.npz', npz())
    path = fetch('dermamnist')
    assert path == cache_dir()/'data/medmnist/dermamnist.npz' and path.read_bytes() == data
    assert left() == ['data/medmnist/dermamnist.npz']
    assert fetch('dermamnist') == path and len(server.asked) == 1       # the second time it is here
    assert verify('dermamnist')['ok'] is True
    path.write_bytes(data[:-1])
    assert verify('dermamnist')['ok'] is False

def test_size(server, at):
    at('dermamnist', 'dermamnist_64.npz', npz(), 64)
    assert fetch('dermamnist', 64).name == 'dermamnist_64.npz' and find('dermamnist') is None

def test_archive(server, at):
    at('heart', 'Task02_Heart.tar', HEART)
    assert fetch('heart') == cache_dir()/'data/Task02_Heart'
    assert left() == ['data/Task02_Heart/dataset.json', 'data/Task02_Heart/imagesTr/la_003.nii.gz']  # neither archive nor macOS's twin

def test_by_hand(server, at, tmp_path, monkeypatch):
    at('heart', 'Task02_Heart.tar', HEART)
    monkeypatch.setenv('MEDKIT_DATA', str(tmp_path))
    (tmp_path/'Task02_Heart.tar').write_bytes(HEART[:-1])
    with pytest.raises(MedkitError, match='Task02_Heart.tar does not have the published checksum'): fetch('heart')
    (tmp_path/'Task02_Heart.tar').write_bytes(HEART)
    assert (fetch('heart')/'dataset.json').is_file() and not server.asked

def test_second_try(server, at):
    data = at('dermamnist', 'dermamnist.npz', npz())
    pages = iter([cut(data), whole(data)])
    server.pages['/dermamnist.npz?download=1'] = lambda h: next(pages)(h)
    assert fetch('dermamnist', retries=1).read_bytes() == data and len(server.asked) == 2

# What goes wrong on the way --------------------------------------------------------------------------------------

def refused(name, why, **kw):
    "The one message, which must say all that helps; nothing may be left"
    with pytest.raises(MedkitError) as err: fetch(name, retries=0, **kw)
    e, text = entry(name), str(err.value)
    for part in (repr(name), why, next(iter(e.url.values())), size_of(e), str(cache_dir()/'data'), repr(e.sample)): assert part in text, (part, text)
    assert left() == []

def test_truncated(server, at): at('dermamnist', 'd.npz', npz(), page=cut); refused('dermamnist', 'the connection broke off')
def test_404(server, at): at('dermamnist', 'd.npz', npz()); server.pages.clear(); refused('dermamnist', 'the server answered 404')
def test_stalled(server, at): at('dermamnist', 'd.npz', npz(), page=stalled); refused('dermamnist', 'silent for 0.3 s', timeout=.3)
def test_stalled_archive(server, at): at('heart', 'h.tar', HEART, page=stalled); refused('heart', 'silent for 0.3 s', timeout=.3)

def test_checksum(server, at):
    data = at('dermamnist', 'd.npz', npz())
    server.pages['/d.npz?download=1'] = whole(data[:-1] + b'x')
    refused('dermamnist', 'wrong checksum')

def test_truncated_unnoticed(server, at):
    "A server that does not say how long the file is"
    data = at('dermamnist', 'd.npz', npz())
    def page(h): h.send_response(200); h.end_headers(); h.wfile.write(data[:100])
    server.pages['/d.npz?download=1'] = page
    refused('dermamnist', 'wrong checksum')

def test_no_server(server, at):
    at('mednist', 'MedNIST.tar.gz', b'')
    server.shutdown(); server.server_close()
    refused('mednist', 'the server cannot be reached')

def test_no_space(at, monkeypatch):
    at('heart', 'h.tar', HEART)
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: type('Usage', (), dict(free=10)))
    refused('heart', 'too little free space')

def test_interrupted(server, at, monkeypatch):
    import pooch
    at('dermamnist', 'd.npz', npz())
    def stop(self, url, output_file, *args): Path(output_file).write_bytes(b'half'); raise KeyboardInterrupt
    monkeypatch.setattr(pooch.HTTPDownloader, '__call__', stop)
    with pytest.raises(KeyboardInterrupt): fetch('dermamnist')
    assert left() == []

# Archives that mean harm: the checksum is right, only the look before unpacking can stop them ---------------------

EVIL_TAR = dict(absolute=(member('/tmp/medkit-evil', 1), 'leads out'), up=(member('MedNIST/../../../medkit-evil', 1), 'leads out'), windows=(member('..\\medkit-evil', 1), 'leads out'),
                symlink=(member('MedNIST/l', type=tarfile.SYMTYPE, linkname='/etc'), 'is a link'), hardlink=(member('MedNIST/l', type=tarfile.LNKTYPE, linkname='../../x'), 'is a link'),
                device=(member('MedNIST/d', type=tarfile.CHRTYPE), 'is a device'), fifo=(member('MedNIST/f', type=tarfile.FIFOTYPE), 'is a device'), bomb=(member('MedNIST/z', 50*2**20), 'bomb'))

@pytest.mark.parametrize('case', EVIL_TAR)
def test_evil_tar(server, at, tmp_path, case):
    evil, why = EVIL_TAR[case]
    at('mednist', 'MedNIST.tar.gz', tar(member('MedNIST/Hand/1.jpeg', 1), evil, mode='w:gz'))
    before = sorted(cache_dir().parent.iterdir())
    with pytest.raises(MedkitError, match=why): fetch('mednist')
    assert left() == [] and sorted(cache_dir().parent.iterdir()) == before and not Path('/tmp/medkit-evil').exists()

def zipped(name, data=b'x', **kw):
    b, i = io.BytesIO(), zipfile.ZipInfo(name)
    for k, v in kw.items(): setattr(i, k, v)
    with zipfile.ZipFile(b, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('MedNIST/Hand/1.jpeg', b'x'); z.writestr(i, data, zipfile.ZIP_DEFLATED)
    return b.getvalue()

EVIL_ZIP = dict(absolute=(zipped('/tmp/medkit-evil'), 'leads out'), up=(zipped('../../medkit-evil'), 'leads out'), drive=(zipped('C:/medkit-evil'), 'leads out'),
                symlink=(zipped('MedNIST/l', b'/etc', external_attr=0o120777 << 16), 'is a link'), bomb=(zipped('MedNIST/z', bytes(50*2**20)), 'bomb'))

@pytest.mark.parametrize('case', EVIL_ZIP)
def test_evil_zip(server, at, case):
    data, why = EVIL_ZIP[case]
    at('mednist', 'MedNIST.zip', data)
    with pytest.raises(MedkitError, match=why): fetch('mednist')
    assert left() == [] and not Path('/tmp/medkit-evil').exists()

def test_bomb_in_a_header(tmp_path):
    "Not a member but a header of the tar swells; reading its list of members would fill the memory"
    with tarfile.open(tmp_path/'x.tar.gz', 'w:gz', format=tarfile.PAX_FORMAT) as t: t.addfile(member('a', pax_headers=dict(comment='0'*(30*2**20))))
    with pytest.raises(MedkitError, match='bomb'): unpack(tmp_path/'x.tar.gz', tmp_path/'out')
    assert os.listdir(tmp_path) == ['x.tar.gz']

def test_zip_that_lies(tmp_path):
    "A member that says it has 10 bytes and has 50 million"
    data = bytearray(zipped('MedNIST/z', bytes(50*2**20)))
    at = data.rindex(b'PK\x01\x02') + 24
    data[at:at+4] = (10).to_bytes(4, 'little')
    (tmp_path/'x.zip').write_bytes(data)
    with pytest.raises(MedkitError, match='x.zip is damaged'): unpack(tmp_path/'x.zip', tmp_path/'out')
    assert os.listdir(tmp_path) == ['x.zip']

def test_too_many(tmp_path):
    (tmp_path/'many.tar').write_bytes(tar(*(member(str(i)) for i in range(20))))
    with pytest.raises(MedkitError, match='over 10 members'): unpack(tmp_path/'many.tar', tmp_path/'out', max_members=10)
    assert os.listdir(tmp_path) == ['many.tar']

@pytest.mark.parametrize('data', [b'', b'no archive', tar(member('a', 20_000), mode='w:gz')[:60], tar(member('a', 20_000))[:5000], zipped('b')[:-30]], ids=['empty', 'text', 'cut tgz', 'cut tar', 'cut zip'])
def test_damaged(tmp_path, data):
    (tmp_path/'x.tar').write_bytes(data)
    with pytest.raises(MedkitError, match='x.tar'): unpack(tmp_path/'x.tar', tmp_path/'out')
    assert os.listdir(tmp_path) == ['x.tar']

# The registry ----------------------------------------------------------------------------------------------------

def test_cards():
    for name, e in ENTRIES.items():
        text = str(card(name))
        assert e.licence in text and e.citation in text and name in text
        assert card(name)._repr_markdown_().startswith(f'**{name}**')
        assert not e.sample or e.sample in ENTRIES
        assert e.url.keys() == e.md5.keys() == e.bytes.keys() and (not e.url or e.url.keys() == e.places.keys())

def test_honest():
    assert 'Not DermaMNIST' in str(card('ham10000')) and 'Not MSD Heart' in str(card('la2018')) and 'none stated' in str(card('la2018'))
    assert 'non-commercial' in str(card('dermamnist')) and 'CC BY-SA 4.0' in str(card('heart'))

def test_light(tmp_path):
    "The command line must answer at once, and nothing may be written outside medkit's folders"
    code = "import sys, medkit.catalog as c; c.find('dermamnist'); sys.exit([m for m in ('torch', 'pandas', 'numpy', 'medmnist', 'monai', 'pooch') if m in sys.modules] or 0)"
    home = tmp_path/'home'; home.mkdir()
    done = subprocess.run([sys.executable, '-c', code], env={**os.environ, 'HOME': str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.listdir(home) == []

def test_damaged_card():
    place = cache_dir()/'data'/'dermamnist.npz'
    place.parent.mkdir(); place.write_bytes(npz()[:500])
    with pytest.raises(MedkitError, match='dermamnist.npz is damaged'): str(card('dermamnist'))

def test_medmnist_home():
    "What the medmnist package has fetched before is found, after one's own folders"
    home = Path.home()/'.medmnist'/'breastmnist.npz'
    home.parent.mkdir(); home.write_bytes(npz())
    assert find('breastmnist') == home and find('heart') is None
    (cache_dir()/'data').mkdir(); (cache_dir()/'data'/'breastmnist.npz').write_bytes(npz())
    assert find('breastmnist').parent == cache_dir()/'data'

def test_generated():
    path = fetch('head_ct')
    assert path == cache_dir()/'data/head_ct' and fetch('head_ct') == path and card('head_ct').counts().sum().item() > 0

# The real sets ---------------------------------------------------------------------------------------------------

@pytest.mark.realdata
def test_real_places(real_data):
    there = dict(hippocampus='Task04_Hippocampus', la2018='LA2018', la2018_full='LA2018_full', mednist='MedNIST', ham10000='ham10000/ham7_28.npz', rsna_experiment1='rsna_tm/experiment1.tm',
                 rsna_experiment4='rsna_tm/experiment4.tm', rsna_experiment5='rsna_tm/experiment5.tm', adrenalmnist3d='medmnist/adrenalmnist3d.npz', pneumoniamnist_rebuilt='medmnist/pneumoniamnist_rebuilt.npz')
    for name, place in there.items(): assert find(name) == real_data/place
    assert find('ham10000', 64) == real_data/'ham10000/jpeg64' and find('adrenalmnist3d', 64) == real_data/'medmnist/adrenalmnist3d_64.npz'
    assert catalog().loc[list(there), 'present'].all() and not left()

@pytest.mark.realdata
def test_real_counts(real_data):
    assert card('ham10000').counts().sum().tolist() == card('ham10000').counts(64).sum().tolist() == [4189, 597, 898]
    assert card('mednist').counts()['all'].sum() == 3040 and '3040 of the 58954 published' in str(card('mednist'))
    assert card('pneumoniamnist_rebuilt').counts().T.values.tolist() == list(PER_CLASS['pneumoniamnist'].values())  # our table against the files
    assert [int(card(f'rsna_experiment{i}').counts().sum().iloc[0]) for i in (1, 4, 5)] == [60, 240, 240]

@pytest.mark.realdata
def test_real_verify(real_data):
    assert [verify('adrenalmnist3d', s)['ok'] for s in (28, 64)] == [True, True]    # the official files
    assert verify('hippocampus')['ok'] and verify('la2018')['ok'] and verify('mednist')['ok'] is None
