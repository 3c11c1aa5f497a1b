"""The fleet door: an MQTT 5 agent that reports the robot and takes signed commands."""
