"Builds medkit from settings.ini, where every version stands. Needs setuptools and the standard library only."
import tempfile
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

ini = ConfigParser(delimiters=['='])
ini.read('settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib, end = cfg['lib_name'], '_requirements'
major, minor = cfg['max_python'].split('.')
build = tempfile.TemporaryDirectory()   # elsewhere, for a build/ left here would slip deleted modules into the next wheel

setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0', license_files=['LICENSE'],
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires=f""">={cfg['min_python']},<{major}.{int(minor)+1}""",
    install_requires=cfg['requirements'].split(),
    extras_require={k[:-len(end)]: v.split() for k, v in cfg.items() if k.endswith(end)},
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: ['weights/*.safetensors', 'weights/*.json', 'weights/*.md']},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
    options={'build': {'build_base': build.name}}, zip_safe=False,
)
