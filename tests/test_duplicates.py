"""Copies across files, formats and real sets: what is known to be there is found, and clean sets stay quiet."""
import io
import numpy as np, pandas as pd, pytest
from PIL import Image
from medkit.core import MedkitError
from medkit.duplicates import check_duplicates, copies, nearest, places, same_group, unit
from medkit.images import open_images
from medkit.phantom import _brain_window, head_ct, lesions

@pytest.fixture
def heads(): return _brain_window(head_ct(40, 1)[0])

def as_set(x): return open_images((x, np.arange(len(x)) % 2, ['train']*(len(x) - 2) + ['val', 'test']))

def test_nearest_is_exact_for_any_number_of_rows():
    "Against the full table; slabs and stretches whose last one is not full"
    for n in (2, 5, 64, 65, 300):
        d = unit(np.random.default_rng(n).standard_normal((n, 12)).astype(np.float32))
        full = d @ d.T - 3*np.eye(n)
        assert (nearest(d, 4, rows=37) == np.argsort(-full, 1)[:, :min(4, n - 1)]).all()

def test_files_of_several_sizes_and_formats(tmp_path, heads):
    "The same head as PNG, as a smaller JPEG and in colour; places are the files; one file cannot be read"
    for c in 'ab': (tmp_path/'s'/c).mkdir(parents=True)
    for i, x in enumerate(heads): Image.fromarray(x).save(tmp_path/'s'/'ab'[i % 2]/f'{i:02}.png')
    Image.fromarray(heads[0]).resize((72, 72)).save(tmp_path/'s'/'b'/'small.jpg', quality=85)
    Image.fromarray(heads[1]).convert('RGB').save(tmp_path/'s'/'b'/'colour.png')
    (tmp_path/'s'/'a'/'broken.png').write_bytes(b'no picture')
    s = open_images(tmp_path/'s')
    _, pairs = copies(s)
    names = {frozenset(places(s)[i].rsplit('/', 1)[-1].rsplit('\\', 1)[-1] for i in ab) for ab in zip(pairs.a, pairs.b)}
    assert names == {frozenset(p) for p in (('00.png', 'small.jpg'), ('01.png', 'colour.png'))}
    assert any(f.check == 'copies that disagree' and len(f.items) == 2 for f in check_duplicates(s))

def test_constant_and_few_pictures():
    "Black pictures are no copies of each other; one or two pictures are a set too"
    assert len(copies(as_set(np.zeros((6, 28, 28), np.uint8)))[1]) == 0
    x = np.random.default_rng(0).integers(0, 255, (3, 28, 28), np.uint8)
    x[2] = x[0]
    groups, pairs = copies(as_set(x))
    assert pairs[['a', 'b', 'kind']].values.tolist() == [[0, 2, 'exact']] and groups[0] == groups[2] != groups[1]

def test_volumes(heads):
    "Equal volumes are found; near copies of volumes are not looked for, not even where their middle planes are the same"
    v = np.stack([np.stack([h[::3, ::3]]*8 + [heads[i - 1][::3, ::3]]*8) for i, h in enumerate(heads[:12])])
    other = v[1:2].copy()
    other[:, 0] += 1                                  # not a middle plane
    assert copies(as_set(np.concatenate([v, v[:1], other])))[1][['a', 'b', 'kind']].values.tolist() == [[0, 12, 'exact']]

def test_nearly_empty_pictures():
    "Two head rests at other places are no copies; the same file twice is"
    x = np.full((8, 96, 96), 30, np.uint8)
    for i, k in enumerate(range(0, 28, 4)): x[i, 60:, 18 + k], x[i, 60:, 60 + k] = 180, 180
    x[7] = x[3]
    assert copies(as_set(x))[1][['a', 'b', 'kind']].values.tolist() == [[3, 7, 'exact']]

def test_as_many_pairs_as_pictures(heads):
    "A set of nothing but copies gives one pair for each picture but the first, not one for each two"
    same, noisy = np.repeat(heads[:1], 300, 0), np.repeat(heads[:1], 60, 0)
    noisy[np.arange(60), 48, np.arange(60)] += 3
    groups, pairs = copies(as_set(same))
    assert len(pairs) == 299 and set(pairs.kind) == {'exact'} and len(set(groups)) == 1
    groups, pairs = copies(as_set(noisy))
    assert 59 <= len(pairs) <= 60*4*3 and len(set(groups)) <= 6   # each knows its nearest only

def test_sixteen_bits_and_transparency(tmp_path, heads):
    "A file with transparency, in colour and of another size is compared as what is seen of it; one of 16 bits has no window yet, and is left out"
    for c in 'ab': (tmp_path/c).mkdir()
    for i, x in enumerate(heads[:20]): Image.fromarray(x).save(tmp_path/'ab'[i % 2]/f'{i:02}.png')
    Image.fromarray(heads[2].astype(np.uint16)*256).save(tmp_path/'a'/'deep.png')
    Image.fromarray(np.dstack([heads[5]]*3 + [np.full_like(heads[5], 255)])).resize((130, 130)).save(tmp_path/'b'/'clear.png')
    s = open_images(tmp_path)
    assert [{places(s)[i].replace('\\', '/').rsplit('/', 1)[-1] for i in ab} for ab in copies(s)[1][['a', 'b']].values] == [{'05.png', 'clear.png'}]

@pytest.mark.realdata
def test_mednist_has_its_twenty_groups(real_data):
    "And nothing that is nearly the same in two classes"
    s = open_images(real_data/'MedNIST')
    _, pairs = copies(s)
    exact = pairs[pairs.kind == 'exact']
    assert exact.a.nunique() == len(exact) == 20
    assert (s.labels[pairs.a] == s.labels[pairs.b]).all()

@pytest.mark.realdata
def test_teachable_machine_projects(real_data):
    "Normals of experiment4 are those of experiment5, coloured; 4 bleeds of experiment1 are in experiment4"
    s1, s4, s5 = (open_images(real_data/'rsna_tm'/f'experiment{k}.tm') for k in (1, 4, 5))
    x = [s.load(96).images for s in (s1, s4, s5)]
    pairs = copies(as_set(np.concatenate([a if a.ndim == 4 else np.repeat(a[..., None], 3, 3) for a in x])))[1]
    ends = np.cumsum([0] + [len(a) for a in x])
    def between(m, n): return pairs[pairs.a.between(ends[m], ends[m+1] - 1) & pairs.b.between(ends[n], ends[n+1] - 1)]
    assert between(0, 1).b.nunique() == 4
    both = between(1, 2)
    kinds = pd.Series([s4.classes[s4.labels[a - ends[1]]] for a in both.a]).value_counts()
    assert kinds.to_dict() == dict(Normal=80, Parenchymal=80, Subdural=22)          # 182 in all: all normals, and bleeds too
