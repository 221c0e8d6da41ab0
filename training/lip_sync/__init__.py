"""How the lip-sync model of the binding report is trained and evaluated."""
