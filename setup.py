"Builds medkit from settings.ini, where every version stands. Needs setuptools and the standard library only."
import sys, tempfile
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, end = cfg['lib_name'], '_requirements'
low, high = ([int(n) for n in cfg[k].split('.')] for k in ('min_python', 'max_python'))
if not low <= list(sys.version_info[:2]) <= high:   # pip's own words come after minutes, and name some dependency
    sys.exit(f"medkit needs Python {cfg['min_python']} to {cfg['max_python']}, this is {sys.version.split()[0]}: make the virtual environment with one of them")
build = tempfile.TemporaryDirectory()   # elsewhere, for a build/ left here would slip deleted modules into the next wheel

setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0', license_files=['LICENSE'],
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires=f">={low[0]}.{low[1]},<{high[0]}.{high[1]+1}",
    install_requires=cfg['requirements'].split(),
    extras_require={k[:-len(end)]: v.split() for k, v in cfg.items() if k.endswith(end)},
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: ['weights/*.safetensors', 'weights/*.json', 'weights/*.md']},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
    options={'build': {'build_base': build.name}}, zip_safe=False,
)
