package insert

import (
	"net/netip"
	"time"

	"github.com/google/uuid"

	"postern/policy/quota"
	"postern/relay/smtp"
)

// Message is the envelope of one accepted message and the facts that its history
// keeps. Strings are valid UTF-8 without NUL.
type Message struct {
	ID           uuid.UUID
	UserID       int64 // 0 for a notice made by the relay
	CredentialID int64
	Sender       smtp.Address // the null path for notices
	Size         int64        // octets of the body

	// The needs of a message at the next hop follow from its text and its envelope; further
	// declarations of the client are not kept. A recipient whose address NeedsUTF8 needs
	// SMTPUTF8 as well.
	UTF8     bool          // SMTPUTF8: of the sender's address, or of a header section that was declared so
	BodyType smtp.BodyType // Body8BitMIME: EightBit, and declared so; else ""
	EightBit bool          // the text has octets beyond ASCII
	BodyHash []byte        // for signatures, as relay/dkim makes it; nil: not taken, the message goes unsigned

	TLSNeed     smtp.TLSNeed
	Ret         smtp.Return
	EnvID       string
	MessageID   string // the Message-ID field, with angle brackets
	AcceptedAt  time.Time
	ClientAddr  netip.Addr // zero for notices
	ClientHello string
	Listener    string
	TLS         string        // "TLS1.3 TLS_AES_128_GCM_SHA256", "" in clear
	Rule        string        // the policy rule that allowed it
	NewNetwork  bool          // it came from a network that is new for the user
	Charges     []quota.Limit // limits that it counts against; none for notices
	Key         Key           // by which its copies are recognised
	Tags        []string      // of the application, visible ASCII
	Metadata    string        // a JSON object of the application; "" for none
}

// Recipient is one recipient of a message that this node owns.
type Recipient struct {
	N                 int // index within the message, from 0; (ID, N) names the row
	Address           smtp.Address
	Notify            smtp.Notify
	ORcptType         string
	ORcpt             string
	Attempts          int  // attempts finished before this one
	LastCode          int  // code of the last attempt's reply; 0 before the first
	LastMidText       bool // that outcome was MidText
	PossibleDuplicate bool // an earlier attempt may have delivered
	DelayNoticed      bool
	// StaysWith is the only way that may be taken, as Outcome.Upstream; "": any. An earlier
	// attempt may have delivered there.
	StaysWith string
	WaitsFor  string // that of its last Outcome
	// Suppressed says that the address gets no mail, though the message was accepted: it is settled so.
	Suppressed bool
	Expires    time.Duration // time left of its lifetime at the claim; ≤ 0: it is over
}
