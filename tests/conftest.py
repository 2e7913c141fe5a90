"""What every test shares: the real data when they lie beside the repository, an own cache, no network."""
import os, pathlib, random
import numpy as np, pytest, torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault('IN_TEST', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

GIVEN = os.environ.get('MEDKIT_DATA')   # read once: own_cache hides it from the tests that do not ask
REAL = pathlib.Path(GIVEN).resolve() if GIVEN else ROOT.parent/'shared'/'data'

@pytest.fixture(autouse=True)
def same_luck():
    "Each test starts from the same state of the global generators, whichever tests ran before it"
    random.seed(0); np.random.seed(0); torch.manual_seed(0)

@pytest.fixture
def real_data(own_cache, monkeypatch):
    "The folder of the real sets; the test is skipped, with the reason, where it is absent"
    if not REAL.is_dir(): pytest.skip('real data absent: set MEDKIT_DATA to the folder that holds them')
    monkeypatch.setenv('MEDKIT_DATA', str(REAL))
    return REAL

@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "A cache of its own for each test, so that no test sees what another left"
    monkeypatch.setenv('MEDKIT_CACHE', str(tmp_path_factory.mktemp('cache')))
    monkeypatch.delenv('MEDKIT_DATA', raising=False)

def pytest_configure(config):
    config.addinivalue_line('markers', 'realdata: needs the real data sets (MEDKIT_DATA, or shared/data beside the repository)')
