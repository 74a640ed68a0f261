package smtp

import "errors"

// Address is a mailbox (RFC 5321 section 4.1.2, with RFC 6531's UTF-8).
//
// Local is the local part with quoting removed, Domain the domain as it was
// written (A-labels, U-labels or an address literal in brackets). The zero value
// is the null reverse path "<>". Addresses are comparable; mailboxes that differ
// only in the case of the domain are different values, see Key.
type Address struct {
	Local  string
	Domain string
}

// IsNull reports the null reverse path.
func (a Address) IsNull() bool { return a == Address{} }

// String returns the mailbox as it goes on the wire without angle brackets, the
// local part quoted again where the grammar demands it; "" for the null path.
func (a Address) String() string { panic("not yet") }

// NeedsUTF8 reports that the mailbox can only be sent with SMTPUTF8.
func (a Address) NeedsUTF8() bool { panic("not yet") }

// DomainKey returns the domain for comparing and grouping: A-labels in lower
// case without a final dot, or the address literal in lower case.
func (a Address) DomainKey() string { panic("not yet") }

// ParseAddress parses a mailbox without angle brackets, "local@domain".
// UTF-8 is allowed. Errors say what is wrong in words fit for a user.
func ParseAddress(s string) (Address, error) { return Address{}, errors.New("not yet") }
