"""A GAN iteration equals the authors'.

Several discriminator steps share one optimizer state.
"""

from tests.parity import steps_gan
from tests.parity.replay import replay

SYSTEM, PART = "vkd", "generation_step"


def test_equals_the_authors_programs(path, record_property):
    replay(path, steps_gan.RUNNERS, record_property)
