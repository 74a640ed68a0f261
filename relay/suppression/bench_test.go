package suppression

import (
	"fmt"
	"hash/maphash"
	"testing"
	"time"

	"postern/relay/smtp"
)

// BenchmarkFind is the cost of each RCPT, and of each delivery, for an address that nobody has
// suppressed: nobody is asked.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("of %d", n), func(b *testing.B) {
			l := New(Config{})
			l.asked = time.Now().Add(time.Hour)
			for i := range n {
				l.known[maphash.String(l.seed, fmt.Sprintf("to%d@example.net", i))] = struct{}{}
			}
			to := smtp.Address{Local: "bob", Domain: "mail.example.org"}
			for b.Loop() {
				if e, err := l.Find(b.Context(), 1, to); e != nil || err != nil {
					b.Fatal(e, err)
				}
			}
		})
	}
}
