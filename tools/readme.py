"Makes README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py`"
import json, os, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def relink(text, folder):
    "`text` with its relative links, which start in `folder`, starting in the repository's root"
    def at_root(m): return '](' + os.path.normpath(os.path.join(folder, m[1])).replace(os.sep, '/')
    return re.sub(r'\]\((?![a-z]+:|#|/)([^)#\s]+)', at_root, text)

def show(cell):
    "A cell as Markdown: prose as it stands, code in a fence; '' for hidden cells and for `#|` lines"
    text = ''.join(cell['source']).strip()
    if cell['cell_type'] == 'markdown': return text
    if cell['cell_type'] != 'code' or re.search(r'^#\| *(hide|default_exp)\b', text, re.M): return ''
    code = '\n'.join(l for l in text.splitlines() if not l.startswith('#|')).strip()
    return code and f'```python\n{code}\n```'

def readme(root=ROOT):
    "What README.md must say, by the front page's notebook"
    cells = [show(c) for c in json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']]
    note = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook, not this file. -->'
    return relink('\n\n'.join([note, *filter(None, cells)]), 'nbs') + '\n'

if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
