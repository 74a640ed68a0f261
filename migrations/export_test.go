package migrations

// The tests walk sets of their own, and cannot be in this package, because
// pgtest imports it.
var (
	Load     = load
	ApplySet = apply
	CheckSet = check
)
