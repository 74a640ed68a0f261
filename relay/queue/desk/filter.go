package desk

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// Filter chooses recipients; zero fields choose all.
type Filter struct {
	IDs          []queue.ID // of messages
	State        State
	UserID       int64
	UserName     string // of UserID, for the audit only
	CredentialID int64
	Sender       string        // address, or "<>"
	Recipient    string        // address
	Domain       string        // domain key of the recipient
	Upstream     string        // of the last attempt
	Reply        string        // what the last reply begins with
	WaitsFor     []string      // how queue.Outcome's begins: up to its space
	OlderThan    time.Duration // since it was accepted
	InDoubt      bool          // it may have been delivered

	Limit   int      // of List: 100 when 0
	AfterID queue.ID // of List: after this recipient
	AfterN  int
}

// filterNames are the names of args.
var filterNames = pg.Names(new(Filter).arguments)

// arguments adds what the filter of list, count, change and cancel compares with.
func (f *Filter) arguments(a *pg.Args) {
	a.Add("ids", octets(f.IDs))
	a.Add("state", string(f.State))
	a.Add("user_id", f.UserID)
	a.Add("credential_id", f.CredentialID)
	a.Add("sender", spellings(f.Sender))
	a.Add("recipient", spellings(f.Recipient))
	a.Add("domain", f.Domain)
	a.Add("upstream", f.Upstream)
	a.Add("older_than", max(f.OlderThan, 0))
	a.Add("reply", f.Reply)
	a.Add("waits_for", f.WaitsFor)
	a.Add("in_doubt", f.InDoubt)
}

func (f *Filter) args() []any {
	var a pg.Args
	f.arguments(&a)
	return a.Values
}

// octets are ids as an array; that of none is null.
func octets(ids []queue.ID) (list [][16]byte) {
	for _, id := range ids {
		list = append(list, id)
	}
	return list
}

// spellings are the ways in which the tables may have an address, whose local part is not
// quoted; "<>" is the null sender, and "" none. The database folds their case, as it does in
// its columns: beyond ASCII that depends on its locale.
func spellings(address string) []string {
	switch at := strings.LastIndexByte(address, '@'); {
	case address == "":
		return nil
	case address == "<>":
		return []string{"@"} // both parts are empty
	case at < 0:
		return []string{address}
	default:
		var list []string
		for _, domain := range smtp.DomainSpellings(address[at+1:]) {
			list = append(list, address[:at+1]+domain)
		}
		return list
	}
}

// String describes the choice, for the audit.
func (f *Filter) String() string {
	var parts []string
	add := func(name, value string) {
		if value != "" && value != "0" {
			parts = append(parts, name+" "+value)
		}
	}
	if len(f.IDs) == 1 {
		add("id", f.IDs[0].String())
	} else if len(f.IDs) > 1 {
		add("ids", fmt.Sprintf("%s and %d more", f.IDs[0], len(f.IDs)-1))
	}
	add("state", string(f.State))
	if f.UserName != "" {
		add("user", f.UserName)
	} else {
		add("user", fmt.Sprint(f.UserID))
	}
	add("credential", fmt.Sprint(f.CredentialID))
	add("sender", f.Sender)
	add("recipient", f.Recipient)
	add("domain", f.Domain)
	add("upstream", f.Upstream)
	add("reply", f.Reply)
	add("waits for", strings.Join(f.WaitsFor, ", "))
	if f.OlderThan > 0 {
		add("older than", f.OlderThan.String())
	}
	if f.InDoubt {
		parts = append(parts, "in doubt")
	}
	if len(parts) == 0 {
		return "all"
	}
	return strings.Join(parts, ", ")
}

// ageSteps are the columns of a Shape: accepted within so long.
var ageSteps = []time.Duration{5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour, 24 * time.Hour}

// Shape is how many live recipients a destination has, by the age of their messages.
type Shape struct {
	Domain  string  `json:"domain"`
	Total   int64   `json:"total"`
	Held    int64   `json:"held"`
	Ages    []int64 `json:"ages"` // within 5m, 15m, 1h, 4h, 24h, and older
	Octets  int64   `json:"octets"`
	Oldest  int64   `json:"oldest_s"`             // seconds since the oldest was accepted
	LastErr string  `json:"last_reply,omitempty"` // of the attempt that ended last
}

var sqlShape = texts.Bind("shape", "rows", "ages")

// Shape returns the destinations with the most live recipients.
func (a *Admin) Shape(ctx context.Context, limit int) ([]Shape, error) {
	rows, err := a.db.Query(ctx, sqlShape, limit, ageSteps)
	if err != nil {
		return nil, fmt.Errorf("shape of the queue: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Shape])
	if err != nil {
		return nil, fmt.Errorf("shape of the queue: %w", err)
	}
	return list, nil
}
