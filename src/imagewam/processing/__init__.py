"""What stands between a robot and the policy: contract, camera layout, normalisation, prompt."""
