"Volumes from files to learners: loaders, training, transfer, bad files, the demonstration"
import gzip, json, math, shutil
import nibabel as nib, numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.interpret import Interpretation
from fastai.learner import load_learner
from fastMONAI.vision_core import MedImage
from medkit.core import MedkitError
from medkit.phantom import make_sample
from medkit.models import SegmentModel, load_model, network, save_model
from medkit.predict import predict
from medkit.segment import segmenter, volume_dls
from medkit.training import Bf16, history, named, restore
from medkit.transfer import transfer

SMALL = dict(device='cpu', bs=2, filters=(4,8,16))

def thin(folder, step):
    "Keep every second voxel or so of a set's files: a training step then takes milliseconds"
    for f in folder.rglob('*.nii.gz'):
        i = nib.load(f)
        nib.save(nib.Nifti1Image(np.asarray(i.dataobj)[::step,::step,::step], i.affine @ np.diag([step,step,step,1.])), f)
    return folder

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Small sets of both organs; read only"
    d = tmp_path_factory.mktemp('organs')
    return {n: thin(make_sample(n, d/n, n=7), s) for n,s in (('organ_a',2), ('organ_b',3))}

@pytest.fixture
def learn(made): return segmenter(volume_dls(made['organ_a'], **SMALL))

def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())
def copied(model): return {k: v.clone() for k,v in named(model).items()}
def voxels(img): return np.asarray(img.dataobj)

class Stop(Callback):
    "Interrupt in the forward pass of an epoch, as Ctrl-C does"
    def __init__(self, epoch, error=KeyboardInterrupt): self.at,self.error = epoch,error
    def after_pred(self):
        if self.training and self.epoch==self.at and self.iter==1: raise self.error('stop')

# ---------- two sets at once

def test_two_sets_keep_their_spacings(made):
    a, b = (volume_dls(made[n], **SMALL) for n in ('organ_a','organ_b'))
    assert np.allclose(a.plan.spacing, 2, atol=.01) and not np.allclose(a.plan.spacing, b.plan.spacing, atol=.2)
    for dls in (a, b, a):
        x, y = dls.one_batch()
        assert x.shape == y.shape == (2, 1, *dls.plan.patch_size)
        assert dls.valid.one_batch()[0].shape == (1, 1, *dls.plan.size)
    assert (MedImage.target_spacing, MedImage.affine_matrix) == (None, None)

# ---------- a fastai Learner

def test_fastai_training(learn):
    learn.lr_find(show_plot=False, num_it=12)
    before = copied(learn.model)
    learn.fit_one_cycle(1, 1e-2, cbs=[SaveModelCallback(monitor='dice'), EarlyStoppingCallback(patience=3)])
    assert not same(before, copied(learn.model))
    learn.freeze(); learn.unfreeze(); learn.fine_tune(1)
    assert len(history(learn)) == 3 and history(learn).train_loss.notna().all()
    assert len(learn.validate()) == 1 + len(learn.metrics) and {p.suffix for p in learn.keep_last.file.parent.iterdir()} <= {'.safetensors','.pth'}

def test_early_stopping_stops(learn):
    learn.fit(6, 0., cbs=EarlyStoppingCallback(monitor='valid_loss', patience=1))
    assert len(history(learn)) < 6

def test_fastai_looking(learn):
    learn.dls.show_batch(max_n=1); learn.show_results(max_n=1); learn.show_results(ds_idx=2)
    probs, y = learn.get_preds()
    assert probs.shape == (len(learn.dls.valid_ds), 3, *learn.dls.plan.size) and torch.allclose(probs.sum(1), torch.ones(1), atol=1e-3)
    i = Interpretation.from_learner(learn)
    losses = i.top_losses(items=False)
    assert len(losses[0]) == len(learn.dls.valid_ds) and losses[0].isfinite().all()

def test_test_dl_takes_files_and_cases(learn):
    case = learn.dls.valid_ds.items[0]
    want = learn.get_preds()[0][:1]
    for o in (case, case.image, str(case.image)): assert torch.equal(learn.get_preds(dl=learn.dls.test_dl([o]))[0], want)
    assert torch.equal(learn.get_preds(dl=learn.dls.test_dl([case], with_labels=True))[1], learn.dls.valid.one_batch()[1].cpu())

def test_export_goes_round(learn, tmp_path):
    learn.fit(1)
    learn.export(tmp_path/'learn.pkl')
    with pytest.warns(UserWarning, match='pickle'): back = load_learner(tmp_path/'learn.pkl')
    f = learn.dls.valid_ds.items[0].image
    assert np.array_equal(voxels(predict(back, f)), voxels(predict(learn, f)))

def test_two_learners_of_one_set_keep_their_own_checkpoints(made):
    dls = volume_dls(made['organ_a'], **SMALL)
    a, b = segmenter(dls, seed=1), segmenter(dls, seed=2)
    for l in (a, b): l.fit(1)
    kept = copied(a.model)
    for p in a.model.parameters(): p.data.zero_()
    assert a.keep_last.file != b.keep_last.file and same(copied(restore(a).model), kept)

def test_more_batch_than_cases(made):
    dls = volume_dls(made['organ_a'], **SMALL)
    assert len(volume_dls(made['organ_a'], plan=dls.plan, bs=64, device='cpu').train) == 1

@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_interruption_keeps_the_last_whole_epoch(learn, capsys, bf16, error):
    learn.remove_cbs([c for c in learn.cbs if isinstance(c, Bf16)])
    if bf16: learn.add_cb(Bf16())
    state = torch.get_rng_state()
    class Note(Callback):
        order = 80
        def after_epoch(self): self.learn.noted = copied(self.learn.model)
    learn.add_cbs([Stop(1, error), Note()])
    with pytest.raises(error): learn.fit(3)
    assert not torch.is_autocast_enabled('cpu') and torch.equal(torch.get_rng_state(), state)
    assert 'Stopped after 1 of 3 epochs' in capsys.readouterr().out
    assert not same(copied(learn.model), learn.noted)
    assert same(copied(restore(learn).model), learn.noted)
    learn.remove_cb(Stop); learn.fit(1)          # and training goes on

@pytest.mark.parametrize('bf16', [False, True])
def test_same_seed_same_numbers(made, bf16):
    def once(seed):
        learn = segmenter(volume_dls(made['organ_a'], **SMALL), seed=seed)
        learn.remove_cbs([c for c in learn.cbs if isinstance(c, Bf16)])
        if bf16: learn.add_cb(Bf16())
        learn.fine_tune(1)
        return history(learn).drop(columns='epoch').to_numpy(), copied(learn.model)
    (a, wa), (b, wb) = once(1), once(1)
    assert np.array_equal(a, b, equal_nan=True) and same(wa, wb)
    assert not np.array_equal(a, once(2)[0], equal_nan=True)

# ---------- transfer

@pytest.fixture(scope='module')
def saved(made, tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MEDKIT_CACHE', str(tmp_path_factory.mktemp('cache')))
        return save_model(segmenter(volume_dls(made['organ_a'], **SMALL)), tmp_path_factory.mktemp('model')/'model.v2')

def test_transfer_takes_the_source_filters(made, saved, capsys):
    assert saved.name == 'model.v2.safetensors' and saved.with_suffix('.json').exists()
    dls = volume_dls(made['organ_b'], device='cpu', bs=2)
    learn = segmenter(dls, pretrained=saved.with_suffix(''))
    assert dls.plan.filters == learn.dls.train.plan.filters == (4,8,16) and 'tensors reused' in capsys.readouterr().out
    src, here = load_model(saved), {k: v for k,v in named(learn.model).items() if not k.startswith('deep_')}  # those heads only train
    rep = transfer(network(dls.plan), named(src.net))
    assert list(rep.tensor) == list(here) and rep.parameters.sum() == sum(v.numel() for v in here.values())
    assert set(rep[rep.state=='new'].tensor) == {k for k in here if k.startswith('output_block')}
    for k in rep[rep.state=='reused'].tensor: assert torch.equal(here[k], named(src.net)[k])
    learn.freeze(); learn.fit(1)
    assert torch.equal(named(learn.model)['bottleneck.conv1.conv.weight'], named(src.net)['bottleneck.conv1.conv.weight'])     # frozen

def test_other_channels_reshape_the_first_layer_only(saved):
    src = load_model(saved); p = src.plan
    p.modality = ['T1', 'T2']
    rep = transfer(network(p), named(src.net))
    other = rep[rep.state!='reused']
    assert len(other) and other.tensor.str.startswith('input_block').all() and set(other.state)=={'re-shaped'} and other.why.str.contains('in the source').all()

def test_a_refused_transfer_changes_nothing(made, saved):
    dls = volume_dls(made['organ_b'], device='cpu', bs=2)
    before = dls.plan
    m = load_model(saved)
    odd = SegmentModel(torch.nn.Linear(2,2), m.plan, {'name': 'odd'})
    with pytest.raises(MedkitError, match='Only 0%'): segmenter(dls, pretrained=odd)
    assert dls.plan is before and all(dl.plan is before for dl in dls.loaders)

def test_deeper_source_than_the_loaders_fit(made):
    dls = volume_dls(made['organ_a'], **SMALL)
    deep = volume_dls(made['organ_a'], device='cpu', bs=2, filters=(4,8,16,32,64))
    dls.plan.size, dls.plan.patch_size = (20,28,20), (20,28,20)
    before = dls.plan
    with pytest.raises(MedkitError, match='multiples of 16 x 16 x 16'): segmenter(dls, pretrained=SegmentModel(network(deep.plan), deep.plan, {'name': 'deep'}))
    assert dls.plan is before

# ---------- bad input

def spoil(fault, s):
    "Do `fault` to the second case of the set in folder `s`; the name of the spoilt file"
    image, label = s/'imagesTr'/'organ_a_001.nii.gz', s/'labelsTr'/'organ_a_001.nii.gz'
    i, l = nib.load(image), nib.load(label)
    x, y, a = i.get_fdata(dtype='f4').copy(), voxels(l).copy(), i.affine
    moved = a.copy(); moved[:3,3] += 5
    def put(d, aff, f): nib.save(nib.Nifti1Image(d, aff), f); return f
    if fault=='shape': return put(y[:-1], a, label)
    if fault=='affine': return put(y, moved, label)
    if fault=='nan': x[2,2,2] = np.nan; return put(x, a, image)
    if fault=='empty': return put(y*0, a, label)
    if fault=='cut': image.write_bytes(image.read_bytes()[:image.stat().st_size//2]); return image
    if fault=='cut mask': label.write_bytes(label.read_bytes()[:120]); return label
    if fault=='4d': return put(np.stack([x,x,x],-1), a, image)
    if fault=='labels': return put(np.where(y==2, 9, y).astype('u1'), a, label)
    if fault=='half labels': return put(y.astype('f4')*.5, a, label)
    if fault=='gone': label.unlink(); return label
    if fault=='rgb': return put(np.zeros(y.shape, dtype=[(c,'u1') for c in 'RGB']), a, image)
    raw = bytearray(gzip.decompress(image.read_bytes()))
    raw[70:72] = b'\xff\x7f'; image.write_bytes(gzip.compress(bytes(raw))); return image        # a data type that does not exist

SAYS = dict(shape='not on the grid', affine='mm apart', nan='NaN', empty='all background', cut='cannot be read', **{'cut mask': 'cannot be read', '4d': '3 frames or channels'},
            labels=r'labels \[9\]', **{'half labels': 'no whole numbers'}, gone='does not exist', rgb='cannot be read', header='cannot be read')

@pytest.mark.parametrize('fault', SAYS)
def test_a_fault_is_told_before_training(made, tmp_path, monkeypatch, fault):
    s = shutil.copytree(made['organ_a'], tmp_path/'s')
    f = spoil(fault, s)
    (tmp_path/'cwd').mkdir(); monkeypatch.chdir(tmp_path/'cwd')
    before = sorted(s.rglob('*'))
    with pytest.raises(MedkitError, match=SAYS[fault]) as e: volume_dls(s, **SMALL)
    assert str(f) in str(e.value) and '1 of 7 cases' in str(e.value)
    assert not list((tmp_path/'cwd').iterdir()) and sorted(s.rglob('*')) == before

def edit(key, value):
    def do(s): d = json.loads((s/'dataset.json').read_text()); d[key] = value; (s/'dataset.json').write_text(json.dumps(d))
    return do

@pytest.mark.parametrize('do,says', [
    (lambda s: (shutil.rmtree(s), s.mkdir()), 'has no dataset.json'),
    (lambda s: (s/'dataset.json').write_text('{"labels"'), 'is not a Decathlon dataset.json'),
    (edit('training', []), 'lists no training cases'), (edit('training', None), 'is not a Decathlon'),
    (edit('labels', {'0': 'background', '1': 'x', '4': 'y'}), 'without a gap'), (edit('labels', {'0': 'background'}), 'without a gap'),
    (edit('training', [dict(image='../up.nii.gz', label='./labelsTr/organ_a_000.nii.gz')]), 'lies outside'),
], ids=['empty','json','none','null','gap','one','outside'])
def test_a_bad_folder(made, tmp_path, do, says):
    s = shutil.copytree(made['organ_a'], tmp_path/'s')
    do(s)
    with pytest.raises(MedkitError, match=says) as e: volume_dls(s, **SMALL)
    assert str(s) in str(e.value)

def test_no_header_brings_a_traceback(made, tmp_path):
    "Three random bytes in the header, 150 times: read, or refused in a sentence"
    from medkit.volumes import read_volume
    raw, rng = gzip.decompress(next((made['organ_a']/'imagesTr').iterdir()).read_bytes()), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        b = bytearray(raw)
        for at in rng.integers(0, 352, 3): b[at] = rng.integers(0, 256)
        (tmp_path/'x.nii').write_bytes(b)
        try: read_volume(tmp_path/'x.nii')
        except MedkitError as e: assert 'x.nii' in str(e); refused += 1
    assert refused > 5

# ---------- the demonstration

def names(folder): return sorted(p.name for p in folder.iterdir())

@pytest.mark.realdata
def test_demo_on_real_sets(real_data, tmp_path, monkeypatch):
    from medkit import demo as d
    for set_ in ('Task04_Hippocampus', 'LA2018'):
        (tmp_path/'data'/set_).mkdir(parents=True)
        j = json.loads((real_data/set_/'dataset.json').read_text())
        j['training'] = j['training'][:6]
        for o in j['training']:
            for f in o.values(): (tmp_path/'data'/set_/f).parent.mkdir(exist_ok=True); shutil.copy(real_data/set_/f, tmp_path/'data'/set_/f)
        (tmp_path/'data'/set_/'dataset.json').write_text(json.dumps(j))
    (tmp_path/'data'/'ham10000').symlink_to(real_data/'ham10000')
    (tmp_path/'cwd').mkdir(); monkeypatch.chdir(tmp_path/'cwd')
    monkeypatch.setitem(d.SPACING, 'hippocampus', 3.); monkeypatch.setitem(d.SPACING, 'la2018', 4.)
    plain = d.transfer_target
    monkeypatch.setattr(d, 'transfer_target', lambda name, m, out, n, steps: plain(name, m, out, 2, 2))
    d.demo('out', data=tmp_path/'data', quick=True)
    assert names(tmp_path/'cwd') == ['out'] and names(tmp_path/'cwd'/'out') == ['metrics.json', 'models', 'report.html', 'run.json']
    assert json.loads((tmp_path/'cwd'/'out'/'run.json').read_text())['sets'] == ['hippocampus', 'la2018', 'ham10000']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['cwd', 'data']
