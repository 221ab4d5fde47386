"""GLaMM-RefSeg and its embedded small twin."""
