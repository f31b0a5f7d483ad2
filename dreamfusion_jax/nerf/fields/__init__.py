"""From position to density and albedo."""
