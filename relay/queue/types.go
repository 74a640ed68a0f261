package queue

import (
	"net/netip"
	"time"

	"github.com/google/uuid"

	"postern/relay/queue/content"
	"postern/relay/queue/insert"
	"postern/relay/smtp"
)

// ID names a message: a UUIDv7 minted before the commit by the accepting node.
type ID = uuid.UUID

// NewID mints an ID. Later IDs sort after earlier ones of the same node.
func NewID() ID { return uuid.Must(uuid.NewV7()) }

// FirstID is the least UUIDv7 of a moment (RFC 9562 section 5.7).
func FirstID(t time.Time) ID {
	var id ID
	ms := t.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	id[6], id[8] = 0x70, 0x80
	return id
}

// Message and Recipient are defined where they are written.
type (
	Message   = insert.Message
	Recipient = insert.Recipient
)

// Delivery is one message with those recipients that this node owns under Epoch. Its
// holder must end every recipient by Settle or Release, and Drop the Body once.
type Delivery struct {
	Message    Message
	Recipients []Recipient
	Body       content.Body
	Epoch      int64
}

// Result is how an attempt ended for one recipient.
type Result string

const (
	Delivered Result = "delivered"
	Deferred  Result = "deferred"
	Failed    Result = "failed"
	// Suppressed is the end of a recipient that is Suppressed: failed, without an attempt.
	Suppressed Result = "suppressed"
)

// DoubtWait is the least wait of mail in doubt before it is tried again: a server that has taken it
// may need a while to recognise a second copy.
const DoubtWait = 15 * time.Minute

// Outcome is the end of one attempt for one recipient. Log line, retry, notice and
// trace are projections of it.
type Outcome struct {
	Message   ID
	N         int // the recipient
	Recipient smtp.Address
	Epoch     int64
	Result    Result
	Reply     smtp.Reply // the server's, or one made up if it gave none
	RemoteMTA string     // the host that gave it (RFC 3464 Remote-MTA) unless it is Ours; "": no host was reached
	Ours      bool       // Reply is made up, about RemoteMTA
	RemoteIP  netip.AddrPort
	TLS       string // TLS facts of the attempt, as connect.Conn has them
	Upstream  string // name of the upstream, or "mx"
	SentAs    string // the mailbox that sent in place of the message's sender, "" for none
	StartedAt time.Time
	At        time.Time
	// RetryIn is the wait of a Deferred recipient; the database's clock counts it.
	RetryIn time.Duration
	// Scope says what a Deferred recipient waits for if that is not its own or the
	// message's fault: "sender", "account", "connection" or "host" (relay/upstream).
	Scope string
	// Unknown says that the final dot was sent and no complete reply came: the
	// next attempt may deliver a second copy.
	Unknown bool
	// DSNPassed says that the next hop took over the duties of NOTIFY.
	DSNPassed bool
	// NoMailbox says that Reply is the recipient's own mail host's, of which suppression.NoMailbox is true.
	NoMailbox bool
	// MidText says that the server gave Reply in the middle of the message's text, and not in answer
	// to a command.
	MidText bool
	// WaitsFor is the Way, the budget or the route that a Deferred recipient waits for: it is due when
	// a Way has Recovered. "": none.
	WaitsFor string
	// StaysWith is the new Recipient.StaysWith. "" also ends Gate's record of a way.
	StaysWith string
	// Left are the other ways of the attempt, nil: none.
	Left *[]LeftWay
	// NotAnAttempt records nothing in the history and counts no attempt: the
	// recipient goes back to waiting (no route, destination busy or suspended).
	NotAnAttempt bool
}

// LeftWay is a way that an attempt has left for another, or passed over.
type LeftWay struct {
	Way   string    `json:"way"` // as Outcome.Upstream
	Host  string    `json:"host,omitempty"`
	Reply string    `json:"reply"` // of the host, or why it was not asked
	Scope string    `json:"scope,omitempty"`
	At    time.Time `json:"at"`
}

// NoticeKind is the reason for a notice.
type NoticeKind string

const (
	NoticeFailure NoticeKind = "failure"
	NoticeDoubt   NoticeKind = "doubt" // may have been delivered, and is not sent again
	NoticeDelay   NoticeKind = "delay"
	NoticeSuccess NoticeKind = "success" // relayed to a server that offers no DSN
)

// Notice is due to the sender of one message, about some of its recipients.
// Its rows are claimed by this node's epoch until EnqueueNotice or ReleaseNotice.
type Notice struct {
	Message    Message
	Kind       NoticeKind
	Recipients []NoticeRecipient
	Headers    []byte       // the header section of the message, bounded
	Body       content.Body // the whole message when it is still stored, else nil
	Epoch      int64

	again bool // the message has had a notice of this kind
}

// NoticeRecipient is one recipient in a Notice.
type NoticeRecipient struct {
	N           int
	Address     smtp.Address
	ORcptType   string
	ORcpt       string
	Reply       smtp.Reply
	RemoteMTA   string // that gave Reply, or the one that Reply quotes when the lifetime ended; "": the relay did
	Upstream    bool   // it was of an upstream, or about one
	Scope       string // what was at fault, as Outcome.Scope
	LastAttempt time.Time
	WillRetryTo time.Time // delay notices: when the lifetime ends
}
