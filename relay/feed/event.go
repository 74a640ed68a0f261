package feed

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Kind is what an event says: docs/events.md.
type Kind string

// The kinds of mail; each of them but Accepted is about one recipient.
const (
	Accepted   Kind = "accepted"
	Voided     Kind = "voided"
	Delivered  Kind = "delivered"
	Deferred   Kind = "deferred"
	Failed     Kind = "failed"
	Suppressed Kind = "suppressed"
	Expired    Kind = "expired"
	InDoubt    Kind = "in_doubt"
	Resolved   Kind = "resolved"
	Held       Kind = "held"
	Released   Kind = "released"
	Cancelled  Kind = "cancelled"
	Noticed    Kind = "noticed"
	Duplicate  Kind = "duplicate"
)

// The kinds of a user's own that are about no message: rows of table event.
const (
	Refused            Kind = "refused"
	SuppressionAdded   Kind = "suppression.added"
	SuppressionRemoved Kind = "suppression.removed"
)

// The other kinds, which no user hears of. Audit is what an admin did, the rest are rows of table event.
const (
	Audit              Kind = "audit"
	LimitNear          Kind = "limit.near"
	BreakerOpen        Kind = "breaker.open"
	BreakerClosed      Kind = "breaker.closed"
	SecretExpiring     Kind = "secret.expiring"
	UpstreamAdded      Kind = "upstream.added"
	UpstreamChanged    Kind = "upstream.changed"
	UpstreamPaused     Kind = "upstream.paused"
	UpstreamResumed    Kind = "upstream.resumed"
	UpstreamRemoved    Kind = "upstream.removed"
	CertificateIssued  Kind = "certificate.issued"
	CertificateFailing Kind = "certificate.failing"
	DKIMKey            Kind = "dkim.key"
)

// ofUser reports whether the user whom an event of the kind is about hears of it.
func (k Kind) ofUser() bool { return k == Refused || k == SuppressionAdded || k == SuppressionRemoved }

// Kinds are all kinds, those of mail first, then those of a user.
func Kinds() []Kind {
	return []Kind{Accepted, Voided, Delivered, Deferred, Failed, Suppressed, Expired, InDoubt, Resolved, Held, Released, Cancelled, Noticed, Duplicate,
		Refused, SuppressionAdded, SuppressionRemoved, Audit, LimitNear, BreakerOpen, BreakerClosed, SecretExpiring,
		UpstreamAdded, UpstreamChanged, UpstreamPaused, UpstreamResumed, UpstreamRemoved, CertificateIssued, CertificateFailing, DKIMKey}
}

// ofResult is the kind of each result in the history; "": it is not an event.
var ofResult = map[string]Kind{
	"delivered": Delivered, "deferred": Deferred, "failed": Failed, "suppressed": Suppressed, "expired": Expired, "unknown": "", "noticed": Noticed,
	"void": Voided, "hold": Held, "release": Released, "cancel": Cancelled, "resolve": Resolved, "resend": Resolved, "retry": "", "duplicate": Duplicate,
}

// kindOf is the kind of a row of the history. The next owner of a fenced row tells the outcome.
func kindOf(result string, fenced, unknown bool) Kind {
	switch {
	case fenced:
		return ""
	case unknown && (result == "deferred" || result == "unknown"):
		return InDoubt
	}
	return ofResult[result]
}

// Event is one event, as docs/events.schema.json describes its JSON.
type Event struct {
	ID     uuid.UUID `json:"id"`
	Cursor string    `json:"cursor"` // behind it
	Kind   Kind      `json:"kind"`
	At     time.Time `json:"at"`

	Message         *Message   `json:"message,omitempty"`   // of mail
	Recipient       string     `json:"recipient,omitempty"` // of mail, but for Accepted
	Reply           *Reply     `json:"reply,omitempty"`     // the server's or, of what was not an attempt, Postern's own text
	Remote          *Remote    `json:"remote,omitempty"`
	Scope           string     `json:"scope,omitempty"`    // what was at fault, if neither the recipient nor the message
	Upstream        string     `json:"upstream,omitempty"` // or "mx"
	Node            string     `json:"node,omitempty"`
	Attempt         int        `json:"attempt,omitempty"` // from 1
	NextAttempt     *time.Time `json:"next_attempt,omitempty"`
	MayHaveArrived  bool       `json:"may_have_arrived,omitempty"`  // this attempt's last reply is not known
	MayBeDuplicate  bool       `json:"may_be_duplicate,omitempty"`  // an earlier attempt may have delivered
	ArrivedByPerson bool       `json:"arrived_by_person,omitempty"` // of Resolved: it had arrived; else it is sent again

	User   string          `json:"user,omitempty"` // of Message, or the one that an event of no mail is about
	Actor  string          `json:"actor,omitempty"`
	Action string          `json:"action,omitempty"`
	Object string          `json:"object,omitempty"`
	Detail json.RawMessage `json:"detail,omitempty"`

	userID int64
}

// Message describes the message that an event is about.
type Message struct {
	ID         uuid.UUID `json:"id"`         // the queue's
	HeaderID   string    `json:"message_id"` // the Message-ID field; "" in a message without one
	Sender     string    `json:"sender"`     // "" for the null path
	Credential string    `json:"credential,omitempty"`
	Size       int64     `json:"size"` // octets
	Recipients []string  `json:"recipients,omitempty"`

	// Of the sender's application (docs/tags.md): Metadata is a JSON object.
	Tags     []string        `json:"tags,omitempty"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

// Reply is an SMTP reply. Code is 0 where no server gave one.
type Reply struct {
	Code     int    `json:"code"`
	Enhanced string `json:"enhanced"`
	Text     string `json:"text"`
}

// Remote is the server of an attempt.
type Remote struct {
	Host    string `json:"host"`
	Address string `json:"address"`
	TLS     string `json:"tls"` // "TLS1.3 TLS_AES_128_GCM_SHA256", "" in clear
}

// idOf derives the id of an event, a UUIDv8 (RFC 9562), from its row. The time is part of it, since a
// restored database gives the same numbers to other rows.
func idOf(source int, key string, at time.Time) uuid.UUID {
	sum := sha256.Sum256(fmt.Appendf(nil, "postern event %d %s %d", source, key, at.UnixMicro()))
	id := uuid.UUID(sum[:16])
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return id
}
