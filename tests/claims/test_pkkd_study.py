"""The study of adder networks: its claims compare what they say, and its arms run."""

import pytest

from stepwell.claims import pkkd
from stepwell.claims.kit.judging import judge
from stepwell.claims.kit.verify import verify_system


def test_claims_compare_the_arms_that_they_name():
    def trained(accuracy):
        return {"test": {"14/accuracy": accuracy}, "seconds": 1.0, "cpu_seconds": 1.0}

    results = {arm: {0: trained(0.5)} for arm in pkkd.ARMS}
    results |= {
        arm: {0: trained(accuracy)} for arm, accuracy in {
            pkkd.CONVOLUTION: 0.6, pkkd.ADDER: 0.54, pkkd.PKKD: 0.57, pkkd.PROGRESSIVE: 0.55,
            pkkd.FIXED: 0.56, pkkd.CONTROL: 0.61, pkkd.RAW: 0.56, pkkd.KERNELS: 0.565,
            pkkd.SIGN: 0.4, f"{pkkd.CONVOLUTION}, {pkkd.LONGEST}": 0.7,
            f"{pkkd.ADDER}, {pkkd.LONGEST}": 0.66,
        }.items()
    }  # fmt: skip
    found = {claim["id"]: claim["difference"]["mean"] for claim in judge(pkkd.STUDY, results)}
    assert found == pytest.approx({
        "better-than-alone": 3, "features-matter": 2, "gain-of-adders": 2, "convolution": -3,
        "gap": 6, "gap-longest": 4, "gap-closes": -2, "progressive": -1, "kernels": 0.5, "maps": 0.5,
        "rate": 4, "parts/1": 4, "parts/2": 4, "parts/3": 4, "parts/4": 14,
        "parts/5": 4, "parts/6": 4, "parts/7": 4,
    })  # fmt: skip
    # a difference of differences varies more than those of two arms, so it shares no spread with them
    gain = next(claim for claim in pkkd.CLAIMS if claim.id == "gain-of-adders")
    assert [c.id for c in pkkd.CLAIMS if c.pooled_with == gain.pooled_with] == [gain.id]


@pytest.mark.usefixtures("quick")
def test_a_quick_study_teaches_adders_and_a_convolution(tmp_path):
    arms = (pkkd.FIXED, pkkd.CONTROL)
    result, _ = verify_system("pkkd", {}, quick=True, seeds=1, workers=1, folder=tmp_path, arms=arms)
    assert {*result["arms"]} == {pkkd.CONVOLUTION, *arms}
