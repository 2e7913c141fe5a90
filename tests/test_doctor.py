"`medkit doctor` in environments that are broken on purpose"
import os, subprocess, sys, venv
from pathlib import Path
import pytest
from conftest import ROOT
from medkit import doctor as d

RUN = 'from medkit.doctor import main; raise SystemExit(main())'
NMS = 'raise RuntimeError("operator torchvision::nms does not exist")'
TORCH = '''
class _T(list):
    def sum(self): return self
    def item(self): return 3.
    def tolist(self): return [0]
tensor = lambda a: _T(a)
ones = lambda n: _T([1.])
class _V: cuda = None
version, backends, get_num_threads = _V, _V, lambda: 2
class cuda:
    is_available = lambda: False
'''
VISION = 'class ops:\n    nms = lambda *a: __import__("torch").tensor([0])\n'
FINE = {d.MODULES.get(n, n): '' for n in d.tested() if n not in ('python', 'fastai', 'fastmonai', 'medmnist')} | {
    'torch': TORCH, 'torchvision': VISION, 'fastai/vision/all': '', 'fastMONAI/vision_all': '', 'medmnist/info': 'INFO = {}',
    'platformdirs': 'user_cache_dir = lambda *a, **k: "cache"'}
VERSIONS = {'torch': '2.11.0', 'torchvision': '0.26.0', 'fastai': '2.8.7', 'fastmonai': '0.12.0', 'monai': '1.6.1', 'torchio': '1.2.1',
            'plum-dispatch': '2.9.0'}
NEEDS = {'torchvision': ['torch (==2.11.0)'], 'fastai': ['torch>=1.10', 'torchvision'], 'fastmonai': ['fastai', 'monai', 'torchio']}

def module(folder, name, text):
    "Write package `name`; of 'fastai/vision/all' the last is a file and the others are packages"
    *packages, last = name.split('/')
    for i in range(1, len(packages) + 1):
        p = folder.joinpath(*packages[:i])
        p.mkdir(exist_ok=True)
        (p/'__init__.py').touch()
    folder.joinpath(*packages, f'{last}.py').write_text(text)

def fakes(folder, modules={}, versions={}):
    "A folder of small stand-ins with the metadata of tested versions, some replaced; `None` leaves one out"
    for name, text in {**FINE, **modules}.items():
        if text is not None: module(folder, name, text)
    for name, v in {**VERSIONS, **versions}.items():
        if v is None: continue
        d = folder/f"{name.replace('-', '_')}-{v}.dist-info"
        d.mkdir()
        d.joinpath('METADATA').write_text('\n'.join(['Metadata-Version: 2.1', f'Name: {name}', f'Version: {v}', *(f'Requires-Dist: {r}' for r in NEEDS.get(name, []))]) + '\n')
    return folder

@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    "A Python with nothing installed"
    d = tmp_path_factory.mktemp('bare')
    venv.create(d, with_pip=False)
    return d/('Scripts/python.exe' if os.name == 'nt' else 'bin/python')

def visit(python, *folders, run=RUN):
    "(exit status, what the doctor printed) with `folders` in front of what `python` knows"
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*folders, ROOT])), 'PYTHONDONTWRITEBYTECODE': '1'}
    p = subprocess.run([str(python), '-c', run], capture_output=True, text=True, env=env, cwd=ROOT/'tests', timeout=600)
    assert 'Traceback' not in p.stderr, p.stderr
    return p.returncode, p.stdout

def row(out, what): return next(l for l in out.splitlines() if l.startswith('|') and f'| {what} ' in l)

def test_nothing_installed(bare):
    rc, out = visit(bare)
    assert rc == 1
    for name in ['torch', 'torchvision', 'fastai', 'monai', 'platformdirs']: assert row(out, name).split('|')[1:4:2] == [' BROKEN ', ' missing '], row(out, name)
    assert '-m pip install "torch>=2.8,<2.12" "torchvision>=0.23,<0.27"' in out

def test_all_well(bare, tmp_path):
    rc, out = visit(bare, fakes(tmp_path))
    assert rc == 0 and 'BROKEN' not in out, out
    assert 'torch 2.11.0 fits torchvision 0.26.0' in row(out, 'the pair') and 'tested: >=2.8,<2.12' in row(out, 'torch')

def test_torchvision_does_not_fit(bare, tmp_path):
    rc, out = visit(bare, fakes(tmp_path, {'torchvision': NMS}, {'torch': '2.13.0+cpu'}))
    assert rc == 1
    assert 'operator torchvision::nms does not exist' in row(out, 'torchvision')
    assert 'wants torch==2.11.0, here is 2.13.0+cpu' in row(out, 'the pair')
    assert row(out, 'torch').startswith('| ?') and row(out, 'fastai').startswith('| ok')

def test_fastai_raises(bare, tmp_path):
    rc, out = visit(bare, fakes(tmp_path, {'fastai/vision/all': 'raise ImportError("cannot import name L")',
                                           'fastMONAI/vision_all': 'import fastai.vision.all'}))
    assert rc == 1 and 'ImportError: cannot import name L' in row(out, 'fastai')
    assert '--force-reinstall "fastai>=' in out and '  fastmonai: mend fastai first' in out

@pytest.mark.parametrize('text, said', [('import os; os.abort()', 'Python itself stopped'), ('raise SystemExit(3)', 'SystemExit: 3'),
                                        ('def f(:', 'SyntaxError'), ('print("{half a line", end="")', 'imports')])
def test_a_package_that_misbehaves(bare, tmp_path, text, said):
    rc, out = visit(bare, fakes(tmp_path, {'monai': text}))
    assert said in row(out, 'monai')
    assert rc == (said != 'imports')

def test_a_package_that_hangs(bare, tmp_path):
    run = 'import medkit.doctor as d; probe = d.probe; d.probe = lambda c: probe(c, timeout=3); raise SystemExit(d.main())'
    rc, out = visit(bare, fakes(tmp_path, {'torchio': 'import time; time.sleep(99)'}), run=run)
    assert rc == 1 and 'did not end within 3 seconds' in row(out, 'torchio') and row(out, 'monai').startswith('| ok')

def test_untested_version_warns_only(bare, tmp_path):
    rc, out = visit(bare, fakes(tmp_path, versions={'fastai': '2.9.0'}))
    assert rc == 0 and row(out, 'fastai').startswith('| ?') and 'pip install "fastai' in out

def test_the_real_environment_broken_on_purpose(tmp_path):
    "The packages that are installed here, with a torchvision and a fastai in front of them that raise"
    pytest.importorskip('torch', reason='torch is not installed')
    module(tmp_path, 'torchvision', NMS)
    module(tmp_path, 'fastai', 'raise ImportError("broken on purpose")')
    rc, out = visit(sys.executable, tmp_path)
    assert rc == 1
    assert row(out, 'torch').startswith('| ok') and row(out, 'nibabel').startswith('| ok')
    assert 'torchvision::nms' in row(out, 'torchvision') and 'broken on purpose' in row(out, 'fastai')
    assert '  fastmonai: mend fastai first' in out or 'fastmonai: mend torchvision first' in out
