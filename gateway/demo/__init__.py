"""The demonstration: the main job on real weather readings, with everything going wrong.

Three field nodes replay hourly readings of three airports on one simulated clock. The
broker is killed for a while, a node is killed and restarted, thermometers fail; what is
lost, what it cost and what the peers' packets were worth is counted from what happened.
"""
