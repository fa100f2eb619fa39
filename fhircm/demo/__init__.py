"""The main job, told on two sandbox EHRs: every process is real, every call crosses HTTP."""
