from __future__ import annotations

import pytest

from trelm_ds.errors import UserError
from trelm_ds.planning.hardware import CPU, GIB, GPUS, device_of, measured


def test_devices_by_name_and_by_size() -> None:
    assert device_of("h200") is GPUS["h200"]
    other = device_of("48 GiB")
    assert other.memory == 48 * GIB
    assert other.flops == GPUS["a100-80g"].flops
    assert "assumed" in other.note


@pytest.mark.parametrize("text", ["h300", "0g", "", "-4g", "80"])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--gpu: '.*' is none of a100-40g"):
        device_of(text)


def test_this_machine_is_measured() -> None:
    device = measured()
    assert device.name == CPU
    assert device.flops["fp32"] > 1e8
    assert device.bandwidth > 1e8
    assert 0 < device.launch_s < 1e-2
    assert device.attained.flops["fp32"] < device.flops["fp32"]
    assert "GFLOP/s in fp32" in device.note
