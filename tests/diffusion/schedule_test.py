import importlib
import importlib.util
import pkgutil
import sys
import types

import chex
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dreamfusion_jax.diffusion import schedule as schedules
from dreamfusion_jax.runtime.errors import PriorError

SD = {"beta_start": 0.00085, "beta_end": 0.012}
CONFIGS = [
    {"beta_schedule": "scaled_linear", **SD},
    {"beta_schedule": "linear", "num_train_timesteps": 400},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "scaled_linear", **SD, "rescale_betas_zero_snr": True},
    {"trained_betas": np.linspace(0.01, 0.3, 20).tolist(), "num_train_timesteps": 20},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_noise_levels_are_diffusers(config, channels_first, channels_last):
    scheduler = diffusers.DDIMScheduler(**config, prediction_type="v_prediction")
    schedule = schedules.schedule_from_config(dict(scheduler.config))
    last = len(schedule.alphas_cumprod) - 1
    chex.assert_trees_all_close(
        schedule.alphas_cumprod, scheduler.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7
    )
    index = np.array([0, last // 3, last])
    z, eps = np.random.default_rng(0).standard_normal((2, 3, 2, 2, 4)).astype(np.float32)
    arguments = channels_first(z), channels_first(eps), torch.from_numpy(index)
    t = jnp.asarray(index / last, jnp.float32)
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    noisy, v = schedules.add_noise(z, eps, alpha, sigma), schedules.velocity(z, eps, alpha, sigma)
    chex.assert_trees_all_close(noisy, channels_last(scheduler.add_noise(*arguments)), atol=1e-4)
    chex.assert_trees_all_close(v, channels_last(scheduler.get_velocity(*arguments)), atol=1e-4)


def test_time_is_rounded_to_the_nearest_index():
    schedule = schedules.schedule_from_config({"num_train_timesteps": 11})
    t = jnp.array([0.0, 0.04, 0.06, 0.5, 1.0, -1.0, 2.0])
    chex.assert_trees_all_equal(
        schedules.time_index(schedule, t), jnp.array([0, 0, 1, 5, 10, 0, 10])
    )
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    chex.assert_trees_all_close(alpha**2 + sigma**2, jnp.ones(7), atol=1e-6)
    assert np.all(np.diff(alpha[:5]) <= 0)


def test_every_index_survives_the_way_through_a_float():
    schedule = schedules.schedule_from_config({})
    index = jnp.arange(1000)
    chex.assert_trees_all_equal(schedules.time_index(schedule, index / 999), index)


@pytest.mark.parametrize("prediction_type", schedules.PREDICTION_TYPES)
def test_what_networks_predict_converts_back_and_forth(prediction_type):
    z, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 2))
    alpha, sigma = jnp.array([0.9, 0.6, 0.3]), jnp.sqrt(1 - jnp.array([0.9, 0.6, 0.3]) ** 2)
    z_t, v = schedules.add_noise(z, eps, alpha, sigma), schedules.velocity(z, eps, alpha, sigma)
    prediction = {"epsilon": eps, "v_prediction": v, "sample": z}[prediction_type]
    arguments = prediction, z_t, alpha, sigma, prediction_type
    chex.assert_trees_all_close(schedules.to_epsilon(*arguments), eps, atol=1e-5)
    chex.assert_trees_all_close(schedules.to_x0(*arguments), z, atol=1e-5)
    chex.assert_trees_all_close(schedules.to_velocity(*arguments), v, atol=1e-5)


@pytest.fixture(params=sorted(schedules.CLASS_DEFAULTS))
def scheduler_class(request, monkeypatch):
    """One of diffusers' classes, imported without the packages that only its sampling needs."""
    for package in ("torchsde", "scipy.stats"):
        if importlib.util.find_spec(package.split(".")[0]) is None:
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for module in pkgutil.iter_modules(diffusers.schedulers.__path__):
        if module.name.startswith("scheduling_"):
            source = importlib.util.find_spec(f"diffusers.schedulers.{module.name}").loader
            if f"class {request.param}(" in source.get_source(source.name):
                return getattr(importlib.import_module(source.name), request.param)
    raise AssertionError(f"diffusers has no {request.param}")


@pytest.mark.parametrize(
    "given", [{}, {"beta_schedule": "scaled_linear", **SD}], ids=["none", "SD"]
)
def test_absent_options_have_the_classs_own_defaults(given, scheduler_class):
    scheduler, name = scheduler_class(**given), scheduler_class.__name__
    schedule = schedules.schedule_from_config({"_class_name": name, **given})
    whole = schedules.schedule_from_config({**scheduler.config, "_class_name": name})
    chex.assert_trees_all_close(
        schedule.alphas_cumprod, scheduler.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7
    )
    chex.assert_trees_all_equal(whole.alphas_cumprod, schedule.alphas_cumprod)
    assert schedule[1:] == whole[1:]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "flow"),
        ("timestep_spacing", "karras"),
        ("rescale_betas_zero_snr", True),  # the default predicts the noise
        ("use_flow_sigmas", True),
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("invented_option", 1),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key, value):
    with pytest.raises(PriorError, match=key):
        schedules.schedule_from_config({key: value})
