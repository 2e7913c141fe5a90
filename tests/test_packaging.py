"The notebooks, the library, the README and the package say the same thing"
import ast, importlib.util, json, os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest
from conftest import ROOT

NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
LIB = sorted((ROOT/'medkit').glob('*.py'))

def run(*args, cwd=ROOT, ok=True, **env):
    "Output of a command; the test fails, with that output, where the command does"
    p = subprocess.run(list(map(str, args)), cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, stdin=subprocess.DEVNULL)
    assert p.returncode == 0 or not ok, p.stdout + p.stderr
    return p.stdout

def settings():
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']

def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

def files():
    "What git holds, and what is new and not ignored"
    if not shutil.which('git') or not (ROOT/'.git').exists(): pytest.skip('no git checkout here')
    return [f for f in run('git', 'ls-files', '-co', '--exclude-standard').splitlines() if (ROOT/f).is_file()]

@pytest.fixture
def copy(tmp_path):
    "A copy of the repository with all its files committed"
    for f in files():
        (tmp_path/'repo'/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/f, tmp_path/'repo'/f)
    for cmd in ['init -q', 'add -A', '-c user.name=t -c user.email=t@t commit -qm all']: run('git', *cmd.split(), cwd=tmp_path/'repo')
    return tmp_path/'repo'

def nbdev(command, repo):
    "Run an nbdev command in `repo`, then what git sees changed"
    pytest.importorskip('nbdev', reason='nbdev is not installed: the development set has it')
    call = {'nbdev_export': 'nbdev.doclinks', 'nbdev_clean': 'nbdev.clean', 'nbdev_install_hooks': 'nbdev.clean'}[command]
    home = str(repo.parent)   # the hooks write to the home folder; under IN_TEST nbdev_export does nothing
    run(sys.executable, '-c', f'from {call} import {command}; {command}()', cwd=repo, HOME=home, USERPROFILE=home, IN_TEST='')
    return run('git', 'status', '--porcelain', cwd=repo) + run('git', 'diff', cwd=repo)

# nbdev

def test_export_leaves_no_diff(copy): assert nbdev('nbdev_export', copy) == ''

def test_clean_leaves_no_diff(copy): assert nbdev('nbdev_clean', copy) == ''

def test_hooks_install(copy):
    assert nbdev('nbdev_install_hooks', copy) == ''
    assert 'nbdev_merge' in run('git', 'config', '--get', 'merge.nbdev-merge.driver', cwd=copy)

def code(nb): return [''.join(c['source']) for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']

def test_export_shows_a_change(copy):
    "The check above can fail: a changed cell changes its module"
    nb = copy/'nbs'/'00_core.ipynb'
    nb.write_text(nb.read_text(encoding='utf-8').replace('cutoff=0.5', 'cutoff=0.6'), encoding='utf-8')
    assert 'medkit/core.py' in nbdev('nbdev_export', copy)

def exported(cell): return re.search(r'^#\| *exports?\b', cell, re.M)

@pytest.mark.parametrize('nb', [p for p in NBS if any(map(exported, code(p)))], ids=lambda p: p.stem)
def test_notebook_asserts(nb):
    shown = [c for c in code(nb) if not exported(c)]
    assert any(re.search(r'\btest_\w+\(|\bassert\b|ExceptionExpected', c) for c in shown), 'exports code and asserts nothing'

# README

def test_readme_is_the_front_page():
    assert (ROOT/'README.md').read_text(encoding='utf-8') == load(ROOT/'tools'/'readme.py').readme(), 'run: python tools/readme.py'

def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\((?![a-z]+:|#)([^)#\s]+)', (ROOT/'README.md').read_text(encoding='utf-8'))
    assert links and [l for l in links if not (ROOT/l).exists()] == []

def test_readme_maker(tmp_path):
    cell = lambda kind, text: dict(cell_type=kind, source=text)
    (tmp_path/'nbs').mkdir()
    cells = [cell('markdown', '# a\n[x](b/c.md) [y](../D.md) [z](https://e.f) [w](#g)'), cell('code', '#| hide\nsecret'), cell('code', '#| eval: false\n1+1'), cell('raw', 'raw')]
    (tmp_path/'nbs'/'index.ipynb').write_text(json.dumps(dict(cells=cells)))
    made = load(ROOT/'tools'/'readme.py').readme(tmp_path)
    assert made.split('\n\n', 1)[1] == '# a\n[x](nbs/b/c.md) [y](D.md) [z](https://e.f) [w](#g)\n\n```python\n1+1\n```\n'

def test_two_command_lines_on_the_first_screen():
    lines = (ROOT/'README.md').read_text(encoding='utf-8').splitlines()
    first = [l for l in lines[:30] if l.startswith('python3 -m venv')]
    assert [l.split('&& ')[-1] for l in first] == ['.venv/bin/medkit demo', '.venv-test/bin/medkit test']

def test_ci_runs_the_readmes_line(tmp_path):
    "`.ci/run` with the README's installer replaced by an echo: it says and runs that line, and fails with it"
    if os.name == 'nt' or not shutil.which('bash'): pytest.skip('no bash')
    (tmp_path/'.ci').mkdir()
    shutil.copy2(ROOT/'.ci'/'run', tmp_path/'.ci'/'run')
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    line = next(l for l in text.splitlines() if l.endswith('medkit test'))
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'python3').write_text('#!/bin/bash\necho fake "$@"; mkdir -p "$3/bin"\n'
        'echo "echo installs" > "$3/bin/python"; echo "echo 3 passed, 1 skipped; exit $STATUS" > "$3/bin/medkit"; chmod +x "$3"/bin/*')
    (tmp_path/'bin'/'python3').chmod(0o755)
    (tmp_path/'README.md').write_text(text, encoding='utf-8')
    env = dict(os.environ, PATH=f"{tmp_path/'bin'}{os.pathsep}{os.environ['PATH']}")
    for status in (0, 1):
        p = subprocess.run(['bash', '.ci/run'], cwd=tmp_path, capture_output=True, text=True, env={**env, 'STATUS': str(status)}, stdin=subprocess.DEVNULL)
        assert p.returncode == status, p.stdout + p.stderr
        assert p.stdout.splitlines() == [f'+ {line}', 'fake -m venv .venv-test', 'installs', '3 passed, 1 skipped']

# The package

def test_setup_says_what_settings_say(tmp_path):
    "Metadata that setuptools makes, against settings.ini"
    pytest.importorskip('setuptools')
    for f in ('setup.py', 'settings.ini', 'README.md', 'LICENSE'): shutil.copy2(ROOT/f, tmp_path/f)
    shutil.copytree(ROOT/'medkit', tmp_path/'medkit', ignore=shutil.ignore_patterns('__pycache__'))
    run(sys.executable, 'setup.py', '-q', 'egg_info', cwd=tmp_path)
    cfg, egg = settings(), tmp_path/'medkit.egg-info'
    info = egg.joinpath('PKG-INFO').read_text(encoding='utf-8')
    norm = lambda r: (re.match(r'[\w.-]+', r)[0].lower(), frozenset(re.findall(r'[<>=!~]+[\d.]+', r)))
    core, extras = egg.joinpath('requires.txt').read_text().split('\n[', 1)
    assert set(map(norm, core.split())) == set(map(norm, cfg['requirements'].split()))
    assert {norm(r) for r in extras.split('dev]\n')[1].split('[')[0].split()} == set(map(norm, cfg['dev_requirements'].split()))
    assert f"\nVersion: {cfg['version']}\n" in info
    spec = re.search(r'Requires-Python: (.*)', info)[1]
    from packaging.specifiers import SpecifierSet
    assert [v for v in ('3.9.18', '3.10.0', '3.12.9', '3.13.0') if SpecifierSet(spec).contains(v)] == ['3.10.0', '3.12.9']
    assert f"__version__ = \"{cfg['version']}\"" in (ROOT/'medkit'/'__init__.py').read_text()

def test_wheel_works_without_the_repository(tmp_path, copy):
    "Build, install into an empty folder, import from elsewhere; data files are in and nothing is left behind"
    pytest.importorskip('setuptools'); pytest.importorskip('wheel', reason='wheel is not installed: the development set has it')
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', tmp_path/'wheels', '.', cwd=copy)
    assert run('git', 'status', '--porcelain', cwd=copy) == ''
    assert not (copy/'build').exists()
    wheel, = (tmp_path/'wheels').glob('*.whl')
    inside = set(zipfile.ZipFile(wheel).namelist())
    ours = {f for f in run('git', 'ls-files', 'medkit', cwd=copy).splitlines()}
    assert ours - inside == set(), 'not in the wheel: see package_data in setup.py'
    assert {f for f in inside if '.dist-info/' not in f} == ours
    run(*pip, 'install', '--no-deps', '--no-index', '--target', tmp_path/'site', wheel)
    out = run(sys.executable, '-c', 'import medkit, medkit.core; print(medkit.__file__)', cwd=tmp_path, PYTHONPATH=str(tmp_path/'site'))
    assert Path(out.strip()).resolve() == (tmp_path/'site'/'medkit'/'__init__.py').resolve()
    assert 'medkit = medkit.cli:main' in next((tmp_path/'site').glob('*.dist-info/entry_points.txt')).read_text()

def test_sdist_holds_what_the_build_needs(tmp_path, copy):
    pytest.importorskip('setuptools')
    run(sys.executable, 'setup.py', '-q', 'sdist', '-d', tmp_path/'sdist', cwd=copy)
    tar, = (tmp_path/'sdist').glob('*.tar.gz')
    shutil.unpack_archive(tar, tmp_path/'out', filter='data') if sys.version_info >= (3, 12) else shutil.unpack_archive(tar, tmp_path/'out')
    top, = (tmp_path/'out').iterdir()
    here = {p.relative_to(top).as_posix() for p in top.rglob('*') if p.is_file()}
    wanted = {'setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', *run('git', 'ls-files', 'medkit', cwd=copy).splitlines()}
    assert wanted - here == set()

def imports(path):
    "(top-level name, whether at module level) of all absolute imports in a file"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for n in ast.walk(tree):
        names = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module] if isinstance(n, ast.ImportFrom) and not n.level else []
        for name in names: yield name.split('.')[0], n in tree.body

def test_imports_are_required():
    "What a module imports is Python's own or stands in settings.ini: at its top in the core, inside functions in an extra at least"
    from importlib.metadata import packages_distributions
    dists, cfg = packages_distributions(), settings()
    named = lambda key: {re.match(r'[\w.-]+', r)[0].lower().replace('_', '-') for r in cfg[key].split()}
    core = named('requirements')
    any_ = core.union(*(named(k) for k in cfg if k.endswith('_requirements') and k != 'dev_requirements'))
    lacking = {(f.name, name) for f in LIB for name, top in imports(f) if name not in sys.stdlib_module_names | {'medkit'}
               and not (core if top else any_) & {d.lower().replace('_', '-') for d in dists.get(name, [name])}}
    assert lacking == set()

def test_library_needs_no_nbdev():
    assert [(f.name, n) for f in LIB if f.name != '_modidx.py' for n, _ in imports(f) if n in ('nbdev', 'execnb', 'IPython')] == []

def test_imports_go_downward():
    "A module imports only modules whose notebook has a lower number"
    order = [m.group(1) for nb in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')) if (m := re.search(r'#\| *default_exp (\w+)', '\n'.join(code(nb))))]
    up = [(f.stem, m) for f in LIB if f.stem in order for m in re.findall(r'^from \.(\w+) import', f.read_text(encoding='utf-8'), re.M)
          if m not in order or order.index(m) >= order.index(f.stem)]
    assert up == []

HEAVY = 'torch torchvision fastai fastcore fastMONAI monai torchio matplotlib pandas numpy sklearn medmnist'.split()

@pytest.mark.parametrize('what', ['import medkit', 'import medkit.core', 'import medkit.catalog', 'import medkit.doctor',
                                  "import sys, medkit.cli\nsys.argv = ['medkit', '--help']\ntry: medkit.cli.main()\nexcept SystemExit as e: assert not e.code"])
def test_imports_nothing_heavy(what, tmp_path):
    name = (re.findall(r'medkit\.(\w+)', what) or ['__init__'])[0]
    if not (ROOT/'medkit'/f'{name}.py').exists(): pytest.skip(f'no module {name} yet')
    out = run(sys.executable, '-c', f'{what}\nimport sys; print("heavy:", [m for m in {HEAVY} if m in sys.modules])', PYTHONPATH=str(ROOT), cwd=tmp_path)
    assert out.splitlines()[-1] == 'heavy: []'

def test_no_paths_of_one_machine():
    own = re.compile(r'(?<![\w.~-])/(?:work|root|home|Users)/\w')
    text = [f for f in files() if Path(f).suffix in ('.py', '.ipynb', '.md', '.ini', '.toml', '.yml', '.json', '.in', '') and f != 'tests/test_packaging.py']
    assert [(f, l.strip()[:120]) for f in text for l in (ROOT/f).read_text(encoding='utf-8').splitlines() if own.search(l)] == []
