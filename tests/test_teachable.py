"""Teachable Machine projects: written as the browser writes them, opened by `image_dls`, bad ones refused; what the real ones share"""
import io, json, re, zipfile
import numpy as np, pytest
from PIL import Image
from medkit.core import MedkitError
from medkit.images import check_images, open_images
from medkit.loaders import image_dls
import medkit.teachable as T
from medkit.teachable import details, picture_groups, same_pictures, write_tm

rng = np.random.default_rng(0)

@pytest.fixture
def folder(tmp_path):
    "Pictures of several sizes and modes in two class folders"
    for c, mode, size in (('no bleed', 'L', (40, 30)), ('Blutung', 'RGB', (64, 64))):
        (tmp_path/'set'/c).mkdir(parents=True)
        for i in range(10): Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).convert(mode).resize(size, Image.Resampling.NEAREST).save(tmp_path/'set'/c/f'{i}.png')
    return tmp_path/'set'

def project(path, names, manifest=b'{"type":"image"}', data=None):
    buf = io.BytesIO(); Image.new('RGB', (9, 9)).save(buf, 'jpeg')
    with zipfile.ZipFile(path, 'w') as z:
        for n in names: z.writestr(n, buf.getvalue() if data is None else data)
        if manifest is not None: z.writestr('manifest.json', manifest)
    return path

def refused(path):
    with pytest.raises(MedkitError) as err: check_images(open_images(path))
    return str(err.value)

def test_folder_to_project_to_loaders(folder, tmp_path):
    "What a folder holds comes back from the .tm: same classes, same pictures (within JPEG), fit for training"
    f = write_tm(folder, tmp_path/'x.tm')
    dls = image_dls(f, device='cpu')
    assert list(dls.vocab) == ['Blutung', 'no bleed'] and dls.set.images.shape == (20, 224, 224, 3)
    want = open_images(folder).as_arrays(224)
    assert np.abs(dls.set.images.astype(int) - want).mean((1, 2, 3)).max() < 12   # JPEG loses most of colour noise
    assert sorted(p.name for p in tmp_path.iterdir()) == ['set', 'x.tm']

def test_layout_is_the_browsers(folder, tmp_path, real_data):
    "Same kind of names, manifest, compression and JPEG as in a project that the browser saved"
    def looks(f):
        with zipfile.ZipFile(f) as z:
            *pictures, last = z.infolist()
            jpeg, m = Image.open(io.BytesIO(z.read(pictures[0]))), json.loads(z.read(last))
            return (last.filename, sorted(m), m['type'], m['version'], sorted(m['appdata']), jpeg.size, jpeg.mode, jpeg.layer, jpeg.quantization,
                    *((i.compress_type, i.create_system, i.flag_bits) for i in (pictures[0], last)))
    assert looks(write_tm(folder, tmp_path/'x.tm')) == looks(real_data/'rsna_tm'/'experiment1.tm')

@pytest.mark.parametrize('names,manifest,why', [
    (['a-!-0.jpg'], None, 'no readable manifest'), (['a-!-0.jpg'], b'{"type":', 'no readable manifest'), (['a-!-0.jpg'], b'\xff\xfe', 'no readable manifest'),
    (['a-!-0.jpg'], b'[]', 'of type None'), (['a-!-0.jpg'], b'{"type":"pose"}', "of type 'pose'"),
    (['../x-!-0.jpg'], b'{"type":"image"}', 'leads out'), (['a/b-!-0.jpg'], b'{"type":"image"}', 'no slashes'), (['a\\b-!-0.jpg'], b'{"type":"image"}', 'leads out|no slashes'),
    (['picture.jpg'], b'{"type":"image"}', 'not named <class>'), (['-!-0.jpg'], b'{"type":"image"}', 'not named <class>'),
    ([], b'{"type":"image"}', 'no pictures'), ([f'a-!-{i}.jpg' for i in range(9)], b'{"type":"image"}', 'one class')])
def test_bad_projects(tmp_path, names, manifest, why):
    assert re.search(why, refused(project(tmp_path/'x.tm', names, manifest)))

def test_bad_files(tmp_path):
    names = [f'{c}-!-{i}.jpg' for c in 'ab' for i in range(9)]
    for data, why in ((b'', '0 bytes'), (b'<html>', 'not a picture')): assert why in refused(project(tmp_path/'x.tm', names, data=data))
    (tmp_path/'y.tm').write_bytes(b'PK no zip')
    assert 'is not a Teachable Machine project' in refused(tmp_path/'y.tm')

def test_an_interrupted_write_leaves_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(T, 'tm_jpeg', lambda x: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): write_tm(folder, tmp_path/'x.tm')
    assert [p.name for p in tmp_path.iterdir()] == ['set']

@pytest.mark.realdata
def test_what_the_real_projects_share(real_data):
    "Four bleeds of experiment1 recur in experiment4, encoded anew; 182 pictures of experiment4 are in experiment5, coloured"
    e1, e4, e5 = (open_images(real_data/'rsna_tm'/f'experiment{k}.tm').load() for k in (1, 4, 5))
    bleeds = same_pictures(e1, e4)
    assert len(bleeds) == 4 and not bleeds.equal.any() and set(bleeds.class_a) == {'Hemorrhage'}
    pairs = same_pictures(e4, e5)
    assert not pairs.equal.any() and pairs.a.is_unique and pairs.b.is_unique
    assert pairs.groupby(['class_a', 'class_b']).size().to_dict() == {('Normal', 'Normal'): 80, ('Parenchymal', 'Intraparenchymal'): 80, ('Subdural', 'Subdural'): 22}
    assert all(len(same_pictures(e)) == 0 for e in (e1, e4, e5))
    g = picture_groups(e1, e4, e5)
    assert len(np.unique(np.concatenate(g))) == 60 + 240 + 240 - 4 - 182 - sum(~np.isin(g[0], g[1]) & np.isin(g[0], g[2]))
    assert np.isin(g[0], g[2]).sum() == 6

# The experiments ----------------------------------------------------------------------------------------------------

@pytest.fixture
def quick(monkeypatch):
    "A stand-in for the frozen network (small greys), and heads of two epochs"
    import medkit.experiments as X
    train = X.train_head
    monkeypatch.setattr(X, 'features', lambda arch, dls: details(dls.set.images, 16))
    monkeypatch.setattr(X, 'train_head', lambda x, y, rows, epochs=50, **kw: train(x, y, rows, 2, **kw))
    return X

def test_all_five_on_generated_pictures(quick):
    "Without the real projects every experiment runs, tells its three notes, and shows the majority first"
    es = quick.tm_experiments(seeds=1)
    assert [e.title[0] for e in es] == list('12345') and all('experiment' not in e.notes[3] for e in es)
    for e in es:
        assert [n.split(':')[0] for n in e.notes[:3]] == ['One would conclude', 'What is wrong', 'The mend'] and e.table.metric[0].startswith('always ')
        assert len(e.figures) >= 3 and '<h3>' in e._repr_html_()

@pytest.mark.realdata
def test_all_five_on_the_real_projects(quick, real_data):
    "Which pictures each experiment takes: 30 + 30, as many of each without copies, three times 80, the 182 that recur in colour"
    e1, e2, e3, e4, e5 = quick.tm_experiments(seeds=1)
    assert e1['accuracy, cross-validated'].n == 60 and 'generated' in e2.notes[3]
    assert e3['accuracy'].n == 220 and e3.per_class.n.tolist() == [110, 110] and e3['torn minus kept'].n == 480
    assert e4['accuracy, end'].n == 240 and 'experiment4' in e4.notes[3]
    assert e5['same pictures: grey, accuracy'].n == 182 and e5.per_class.n.tolist() == [80, 80, 22]
