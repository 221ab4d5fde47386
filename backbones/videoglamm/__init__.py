"""VideoGLaMM, which segments what an expression names in a clip, and its embedded small twin."""
