"""What every test shares: the real data when they lie beside the repository, an own cache, no network."""
import os, pathlib, pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault('IN_TEST', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

def _real():
    given = os.environ.get('MEDKIT_DATA')
    return pathlib.Path(given).resolve() if given else ROOT.parent/'shared'/'data'

@pytest.fixture
def real_data(monkeypatch):
    "The folder of the real sets; the test is skipped, with the reason, where it is absent"
    folder = _real()
    if not folder.is_dir(): pytest.skip('real data absent: set MEDKIT_DATA to the folder that holds them')
    monkeypatch.setenv('MEDKIT_DATA', str(folder))
    return folder

@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "A cache of its own for each test, so that no test sees what another left"
    monkeypatch.setenv('MEDKIT_CACHE', str(tmp_path_factory.mktemp('cache')))
    monkeypatch.delenv('MEDKIT_DATA', raising=False)

def pytest_configure(config):
    config.addinivalue_line('markers', 'realdata: needs the real data sets (MEDKIT_DATA, or shared/data beside the repository)')
