// Package budget keeps all nodes together within what an upstream may be given: messages and
// recipients in a window, and connections.
//
// Job: read what an admin has set, lease portions of it to this node, and say whether a message
// may be sent, or when it has its turn. It sends nothing and defers nothing (relay/delivery), and
// knows no accounts (relay/upstream).
//
// Invariants: what may have been sent counts, by the database's clock, until its window has
// passed after the end of its transaction; so no limit is exceeded in any window, whatever
// dies (docs/decisions/budgets.md). An upstream without a budget costs nothing.
//
// Failure: while the database is away only what is leased is spent.
package budget
