// Package reserve keeps a part of the database's disk in reserve and gives it back when the
// disk is full. Then no mail is accepted, but outcomes can be written, so the queue drains and
// makes room. See docs/decisions/reserve.md.
//
// It knows nothing of mail: it hears of errors, reads and writes the tables room and reserve,
// and says whether mail may be accepted. Any number of nodes may run one.
package reserve
