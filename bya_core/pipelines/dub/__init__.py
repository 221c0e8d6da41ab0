"""New voices for the people of an existing film: their mouths are generated again, everything else stays as it is."""
