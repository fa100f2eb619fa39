"""What a care coordinator would recognise: referrals, transitions, deadlines, escalation."""
