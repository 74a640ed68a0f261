package insert

import (
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"

	"postern/relay/smtp"
)

// BenchmarkStatement is what it takes of this process to make the arguments of a group of messages.
func BenchmarkStatement(b *testing.B) {
	for _, n := range []int{1, 64} {
		m := Message{ID: uuid.New(), UserID: 1, CredentialID: 1, Sender: smtp.Address{Local: "alice", Domain: "example.com"},
			Size: 1, MessageID: "<1@example.com>", AcceptedAt: time.Now(), Listener: "submission"}
		rcpts := []Recipient{{Address: smtp.Address{Local: "bob", Domain: "example.net"}}}
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			var g Group
			for b.Loop() {
				g.Reset()
				for range n {
					g.Add(&m, rcpts, nil, true)
				}
				var d decision
				g.statement(Owner{Node: "a"}, false, &d)
			}
		})
	}
}
