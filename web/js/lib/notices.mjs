// Notices of a run as toasts and badges.
