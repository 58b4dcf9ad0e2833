"""Expressions that people write in models, by kind.

`x` [B, 6, 8] and `y` [B, 6, 8] are floats with gradients, `p` [B, 6, 8] lies strictly between 0 and 1, `i`
and `j` [B, 6] are integers from 0 to 7, `m` [B, 6] is boolean, `c` [B, 4, 8, 8] is a picture, `w` [8, 8] a
weight.
"""

from __future__ import annotations

ALLOWED: dict[str, str] = {
    "arithmetic": """
        x + y * 2 - 1; x / (y.abs() + 1); x.detach() // 0.5; x % 0.7; torch.fmod(x, 0.3); p ** 1.5; 2 ** x
        p ** y; torch.remainder(2.0, p.detach()); torch.true_divide(x, 3)
        torch.divide(x, 3, rounding_mode="floor"); torch.multiply(x, y); torch.subtract(x, y); x.negative()
        x.absolute(); torch.positive(x); torch.sgn(x); x.sign(); x.signbit(); torch.copysign(x, y)
        torch.copysign(x, -1.0); torch.heaviside(x.detach(), p.detach()); torch.fmax(x, y); torch.fmin(x, y)
        torch.hypot(x, y); torch.ldexp(x, i[..., None]); x.round(decimals=1); torch.fix(x); x.trunc()
        x.frac(); torch.clip(x, min=p, max=p + 1); torch.gcd(i, j); torch.lcm(i, j); torch.deg2rad(x)
        torch.rad2deg(x); torch.addcmul(x, x, y); x.lerp(y, 0.3); torch.float_power(p, 2)
        torch.float_power(p, y).float()
    """,
    "functions": """
        x.exp().log1p(); p.log2(); p.log10(); x.sin() + x.cos() + x.tan(); p.asin() + p.acos() + x.atan()
        p.arcsin() + p.arccos() + x.arctan(); x.sinh() + x.cosh(); x.asinh() + (p + 1).acosh() + p.atanh()
        torch.arctan2(x, y); torch.sinc(x); x.erf() + x.erfc(); p.erfinv(); p.lgamma() + p.digamma()
        torch.polygamma(1, p); torch.special.i0e(x) + torch.special.i1e(x); torch.special.entr(p)
        torch.special.ndtr(x); torch.special.ndtri(p); torch.special.log_ndtr(x)
        torch.special.xlog1py(x, p); torch.xlogy(2.0, p); torch.xlogy(x, 2.0); torch.logaddexp2(x, y)
        p.logit(); torch.special.expit(x); torch.special.erfcx(x); torch.i0(x); torch.special.gammaln(p)
        torch.igamma(p.detach(), p); torch.mvlgamma(p + 3, 2); torch.special.zeta(p.detach() + 2, 2.0)
        torch.frexp(x)[0]
    """,
    "logic and bits": """
        (x > 0) & m[..., None]; (x > 0) | m[..., None]; (x > 0) ^ m[..., None]; ~(x > 0); i & j; i | 3
        i ^ j; ~i; i << 1; i >> 1; 1 << j; i << j; i >> j; 7 & i; 7 | i; 7 ^ i; m & True; m | False
        torch.bitwise_and(i, j); torch.bitwise_left_shift(i, j); torch.bitwise_right_shift(i, 1)
        torch.isclose(x, y); torch.isin(i, j); torch.isin(i, 3); torch.isposinf(x) | torch.isneginf(x)
        x.isnan() | x.isinf(); torch.less(x, y); torch.greater_equal(x, 0); x.ne(y); torch.not_equal(x, 0.5)
        torch.bucketize(x, torch.linspace(-1, 1, 5))
        torch.searchsorted(torch.linspace(-1, 1, 5), x.detach()); torch.where(x > 0, x, -0.1 * x)
        torch.where(m[..., None], x, y); x.masked_fill(~m[..., None], 0.0); m.all(1); m.any(1)
        torch.all(x > -9, dim=(1, 2))
    """,
    "reductions": """
        x.count_nonzero(1); torch.count_nonzero(i, dim=1); x.median(1).values; x.median(2, keepdim=True)[0]
        x.nanmedian(1).values; x.nansum(1); x.nanmean(1); x.quantile(0.5, dim=1)
        torch.nanquantile(x, 0.25, dim=2, keepdim=True); torch.quantile(x, torch.tensor([0.1, 0.9]), dim=2)
        x.kthvalue(2, 1).values; x.cummax(1).values; x.cummin(1).values; x.logcumsumexp(1); x.cumsum(1)
        p.cumprod(1); x.logsumexp((1, 2)); x.std(1); x.var(2, unbiased=False); torch.std_mean(x, 1)[1]
        torch.var_mean(x, 2)[0]; x.amax((1, 2)); x.amin(1); torch.aminmax(x, dim=1)[0]; x.norm(dim=2)
        x.norm(p=1, dim=1, dtype=torch.float64).float(); torch.linalg.norm(x, dim=2); x.sort(1)[0]
        torch.msort(x); x.argsort(1); x.topk(2, 1)[0]; x.max(1)[0]; x.argmax(2); x.diff(dim=1)
        torch.diff(i, prepend=i[:, :1]); torch.trapezoid(x, dim=2); torch.cumulative_trapezoid(x, dim=1)
        x.prod(2); torch.mode(i, 1)[0]; torch.dist(x, y)[None].expand(x.shape[0])
        torch.renorm(x, 2, 0, 1.0)
    """,
    "products": """
        x @ w; torch.matmul(x, y.mT); torch.inner(x, w); torch.trace(w) * x; torch.diag(w) * x
        torch.outer(w[0], w[1]) + x[:, :1]; torch.einsum("bij,bkj->bik", x, y)
        torch.bmm(x, y.transpose(1, 2)); torch.cdist(x, y); torch.linalg.multi_dot((w, w, w)) @ x.mT
        torch.linalg.cross(x[..., :3], y[..., :3]); torch.linalg.vecdot(x, y)
        torch.addr(w, w[0], w[1]) + x[:, :1]; torch.matrix_power(w, 3) @ x.mT
        torch.kron(w[:2, :2], w[:2, :2]).sum() * x; torch.baddbmm(x, x, w.expand(x.shape[0], 8, 8))
        torch.tensordot(x, w, 1); F.bilinear(x, y, w[None]); F.cosine_similarity(x, y, 2)
        F.normalize(x, dim=2); F.linear(x, w, w[0]); F.pairwise_distance(x, y); torch.vdot(w[0], w[1]) * x
    """,
    "linear algebra": """
        torch.linalg.inv(w)[:6] * x; torch.inverse(w) @ x.mT; torch.linalg.det(w) * x; torch.det(w) * x
        torch.linalg.slogdet(w)[1] * x; torch.logdet(w @ w.T + torch.eye(8)) * x
        torch.linalg.solve(w, x.mT); torch.linalg.solve_triangular(w.tril(), x.mT, upper=False)
        torch.linalg.cholesky(x @ x.mT + torch.eye(6)); torch.linalg.cholesky_ex(w @ w.T)[0] @ x.mT
        torch.cholesky_solve(x.mT, torch.linalg.cholesky(w @ w.T + torch.eye(8))); torch.linalg.qr(x)[1]
        torch.linalg.svd(x, full_matrices=False)[1]; torch.linalg.svdvals(w).sum() * x
        torch.linalg.eigh(w + w.T)[0] * x; torch.linalg.eigvalsh(x @ x.mT)
        torch.linalg.eigvals(w).abs() * x; torch.linalg.pinv(w) @ x.mT; torch.pinverse(w) @ x.mT
        torch.matrix_exp(w * 0.1) @ x.mT; torch.linalg.matrix_norm(w, "nuc") * x
        torch.linalg.matrix_norm(w) * x; torch.linalg.cond(w) * x; torch.linalg.matrix_rank(w) * x
        torch.linalg.lu(w)[2].sum() * x; torch.linalg.tensorinv(w.view(8, 2, 4), 1).sum() * x
        torch.linalg.householder_product(w, w[0]) @ x.mT; torch.linalg.vander(w[0]).sum() * x
    """,
    "spectra": """
        torch.fft.rfft(x).abs(); torch.fft.irfft(torch.fft.rfft(x)); torch.fft.fft2(x).real
        torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(y)).real; torch.fft.fftshift(x)
        torch.fft.fftfreq(8) * x; torch.fft.hfft(torch.fft.ihfft(x)); torch.fft.rfftn(x, dim=(1, 2)).imag
        torch.stft(x.flatten(1), 16, return_complex=True, window=torch.hann_window(16)).abs()
        torch.istft(torch.view_as_complex(x.unflatten(2, (4, 2))), 10, 2, window=torch.ones(10))
        torch.view_as_complex(x.unflatten(2, (4, 2))).abs(); torch.view_as_real(torch.complex(x, y))
        torch.polar(p, x).real; torch.complex(x, y).conj().imag; torch.complex(x, y).angle()
        x.to(torch.complex64).real; torch.complex(x, y).mH.real; (torch.complex(x, y) * (2 + 1j)).imag
        torch.einsum("bij,jk->bik", torch.complex(x, y), torch.complex(w, w)).abs()
    """,
    "in place": """
        x.clone().sinc_(); x.clone().div_(p, rounding_mode="floor").detach(); x.clone().clamp_max_(y)
        (i + 0).bitwise_left_shift_(j); x.clone().atan2_(y); x.clone().rad2deg_()
    """,
    "shapes": """
        torch.moveaxis(x, 1, 2); x.movedim(2, 1); torch.column_stack((i, j)); torch.row_stack((x, y))
        torch.hstack((x, y)); torch.tensor_split(x, 3, 1)[1]; torch.tensor_split(x, (2, 4), 1)[0]
        torch.hsplit(x, 2)[0]; torch.dsplit(x, 2)[1]; x.unflatten(2, (2, 4)).flatten(1); x.chunk(2, 1)[1]
        x.split((2, 4), 1)[0]; x.unsafe_chunk(2, 1)[0]; torch.concatenate((x, y), 2); x.flip(1)
        torch.fliplr(x); x.roll((1, 1), (1, 2)); x.rot90(1, (1, 2)); x.diag_embed().sum(3)
        x.diagonal(0, 1, 2); x.tril(); x.triu(1); x.repeat(1, 2, 1); x.tile(2); x.repeat_interleave(2, 1)
        x.unfold(1, 2, 2); x.swapaxes(1, 2); x.mT; x.expand(2, *x.shape).mean(0)
        F.pad(x, (1, 1), "circular"); F.pad(x, (1, 1), "reflect"); F.pad(x, (1, 1), value=2.0)
        x.unbind(1)[0]; torch.meshgrid(w[0], w[1], indexing="ij")[0].mean() * x
        torch.block_diag(w, w).sum() * x; torch.cartesian_prod(w[0], w[1]).sum() * x; x[:, ::2]
        x[..., None, :2]; x.as_strided((x.shape[0], 3, 8), (48, 16, 1)); x.sum_to_size(x.shape[0], 1, 8)
    """,
    "indexing": """
        x.gather(1, i[..., None].clamp(max=5).expand(-1, -1, 8)); x.index_select(1, torch.tensor([0, 2]))
        x[:, [1, 3]]; x.scatter(2, i[..., None], 1.0)
        x.detach().scatter(2, i[..., None], 2.0, reduce="add")
        torch.scatter_reduce(x, 2, i[..., None], y[..., :1], "amax")
        x.scatter_add(2, i[..., None], y[..., :1]); x.index_add(1, torch.tensor([0, 2]), y[:, :2])
        x.index_reduce(1, torch.tensor([0, 2]), y[:, :2], "prod")
        x.index_copy(1, torch.tensor([0, 2]), y[:, :2]); x.index_fill(1, torch.tensor([1]), 0.5); w.take(i)
        x.slice_scatter(y[:, :2], 1, 0, 2); x.select_scatter(y[:, 0], 1, 3); F.one_hot(i, 8).float() * x
        F.embedding(i, w); F.embedding_bag(i, w); F.embedding_bag(i, w, mode="sum")
        F.embedding_bag(i, w, mode="max"); F.embedding_bag(i, w, mode="sum", per_sample_weights=p[..., 0])
        F.embedding_bag(i, w, padding_idx=2); x.masked_scatter(m[..., None], y)
        torch.nn.utils.rnn.pad_sequence([x, y]).sum(1)
    """,
    "pictures": """
        F.interpolate(c, scale_factor=2, mode="bilinear")
        F.interpolate(c, size=(5, 5), mode="bilinear", antialias=True)
        F.interpolate(c, size=(5, 5), mode="bicubic", antialias=True)
        F.interpolate(c, size=(5, 5), mode="nearest-exact"); F.interpolate(c, size=(5, 5), mode="area")
        F.max_unpool2d(*F.max_pool2d(c, 2, return_indices=True), 2)
        F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2); F.adaptive_max_pool2d(c, 3)
        F.adaptive_avg_pool2d(c, (2, None)); F.lp_pool2d(c, 2, 2)
        F.avg_pool2d(c, 3, 1, 1, count_include_pad=False); F.unfold(c, 3); F.pixel_shuffle(c, 2)
        F.pixel_unshuffle(c, 2); F.local_response_norm(c, 3)
        F.grid_sample(c, c[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)
        F.affine_grid(x[:, :2, :3], (x.shape[0], 1, 4, 4), align_corners=False); torch.channel_shuffle(c, 2)
        F.instance_norm(c); F.group_norm(c, 2); F.pad(c, (1, 1, 1, 1), "circular")
        F.conv2d(c, w[:4, :4, None, None]); F.adaptive_max_pool3d(c[:, None], 2)
    """,
    "activations": """
        F.gelu(x, approximate="tanh"); F.softmin(x, 1); F.softsign(x); F.tanhshrink(x); F.hardshrink(x)
        F.glu(x); F.logsigmoid(x); F.mish(x); F.selu(x) + F.celu(x) + F.elu(x); F.relu6(x); F.softplus(x)
        F.threshold(x, 0.1, 0.0); F.prelu(x, w[0, :6]); F.rms_norm(x, (8,)); F.layer_norm(x, (8,))
        torch.softmax(x, 1); F.scaled_dot_product_attention(x, y, x)
        F.scaled_dot_product_attention(x, y, x, is_causal=True)
        F.scaled_dot_product_attention(x, y, x, attn_mask=m[:, None, :] | torch.eye(6, dtype=torch.bool))
    """,
    "factories": """
        torch.hann_window(8) * x; torch.hamming_window(8, periodic=False) * x; torch.blackman_window(8) * x
        torch.bartlett_window(8) * x; torch.kaiser_window(8) * x; torch.logspace(0, 1, 8) * x
        torch.arange(8) * x; torch.zeros_like(x) + x.new_ones(8); torch.full((x.shape[0], 1, 8), 2.0) * x
        torch.eye(8) * x[:, :1]; torch.tril(torch.ones(6, 6)) @ x; x + torch.linspace(0, 1, 8)
    """,
    "losses": """
        F.gaussian_nll_loss(x, y, p); F.poisson_nll_loss(x, p); F.kl_div(x.log_softmax(2), p)
        F.huber_loss(x, y); F.cross_entropy(x.transpose(1, 2), i); F.cross_entropy(x, p)
        F.nll_loss(x.log_softmax(2).mT, i)
        F.binary_cross_entropy(p, m[..., None].float().expand(-1, -1, 8))
        F.soft_margin_loss(x, y.detach().sign()); F.triplet_margin_loss(x, y, p)
        F.margin_ranking_loss(x, y, p); F.multilabel_soft_margin_loss(x[:, 0], p[:, 0])
        F.cosine_embedding_loss(x[:, 0], y[:, 0], 2.0 * m[:, 0] - 1); F.multi_margin_loss(x[:, 0], i[:, 0])
        F.triplet_margin_with_distance_loss(x, y, p); F.hinge_embedding_loss(x, 2.0 * m[..., None] - 1)
        F.ctc_loss(x.log_softmax(2).transpose(0, 1), j[:, :2].clamp(min=1), 0 * j[:, 0] + 6, 0 * j[:, 0] + 2)
    """,
}
"""What a portable graph takes, separated by semicolons and line ends."""

RANDOM = """
    torch.normal(x, 0.5); torch.normal(x, p); torch.normal(0.0, p); torch.bernoulli(p); torch.poisson(p * 4)
    torch.multinomial(p[:, 0], 2); torch.rand_like(x) * x; torch.randn(x.shape[0], 6, 8) + x
    F.dropout(x, 0.3); F.gumbel_softmax(x, hard=True); torch.empty_like(x).uniform_(-1, 1) + x
    torch.empty_like(x).exponential_() + x; torch.empty_like(x).geometric_(0.5) + x
    torch.empty_like(x).cauchy_() + x; torch.empty_like(x).log_normal_() + x
    torch.distributions.Normal(x, p).rsample(); torch.randint(5, (x.shape[0], 1, 1)) + x
    torch.distributions.Categorical(logits=x).sample(); torch.distributions.Bernoulli(p).sample()
    F.rrelu(x, training=True); torch.distributions.Uniform(x, x + p).rsample()
    torch.distributions.Laplace(x, p).rsample(); F.fractional_max_pool2d(c, 2, output_size=3)
    torch.distributions.MultivariateNormal(x, scale_tril=p.diag_embed()).rsample()
"""
"""What draws random numbers, from the seed of the step."""

REFUSED: dict[str, str] = {
    "shape depends on the values": """
        x.nonzero(); x[x > 0]; torch.unique(i)
        x.masked_select(x > 0); torch.bincount(i[:, 0]); torch.argwhere(m)
    """,
    "no derivative": "torch.special.bessel_j0(x); torch.nextafter(x, y)",
    "places among values": """
        torch.linalg.lu_solve(*torch.linalg.lu_factor(w), w) * x.sum()
        torch.segment_reduce(w, "sum", lengths=torch.tensor([3, 5])).sum() * x
    """,
    "complex numbers leave the model": "torch.fft.rfft(x); torch.complex(x, y)",
    "leaves the graph": "x * x.sum().item(); x * float(x.max()); torch.from_numpy(x.detach().numpy()) * x",
}
"""What it does not take, by reason."""


def expressions(text: str) -> list[str]:
    return [part.strip() for part in text.replace("\n", ";").split(";") if part.strip()]
