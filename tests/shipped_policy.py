"""The policy that comes with the package, as what plays."""

from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.evaluation.policy_predictor import PolicyPredictor
from imagewam.shipped import TINY_METAWORLD


def shipped_predictor(num_inference_steps: int = 2) -> PolicyPredictor:
    policy = ImageWAMForActionPrediction.from_pretrained(TINY_METAWORLD)
    return PolicyPredictor(policy, ImageWAMProcessor.from_pretrained(TINY_METAWORLD), num_inference_steps)
