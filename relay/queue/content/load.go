package content

import (
	"context"
	"embed"
	"fmt"
	"math"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlSmall  = texts.Bind("small", "id")
	sqlStored = texts.Bind("stored", "id", "last", "octets")
	sqlChunks = texts.Bind("chunks", "id", "first", "end")
)

// mostStored is more than a message may ever have.
const mostStored = int64(ChunkSize) * math.MaxInt32

// Load finds the bodies of messages by their sizes: up to a window's size whole in memory,
// larger ones as a Body that reads from the pool on demand. A body that is not stored whole is
// left out.
func Load(ctx context.Context, conn *pgx.Conn, pool *pgxpool.Pool, sizes map[uuid.UUID]int64) (map[uuid.UUID]Body, error) {
	var small, large [][16]byte
	for id, size := range sizes {
		switch {
		case size < 0 || size > mostStored:
		case size <= window:
			small = append(small, id)
		default:
			large = append(large, id)
		}
	}
	found := make(map[uuid.UUID]Body, len(sizes))
	if err := loadSmall(ctx, conn, small, sizes, found); err != nil {
		return nil, err
	}
	if len(large) == 0 {
		return found, nil
	}
	whole, err := findLarge(ctx, conn, large, sizes)
	for _, id := range whole {
		found[id] = newStored(pool, id, sizes[id])
	}
	return found, err
}

// findLarge returns those that are stored whole.
func findLarge(ctx context.Context, conn *pgx.Conn, large [][16]byte, sizes map[uuid.UUID]int64) ([]uuid.UUID, error) {
	last, octets := make([]int32, len(large)), make([]int32, len(large))
	for i, id := range large {
		end := sizes[id] - 1
		last[i], octets[i] = int32(end/ChunkSize), int32(end%ChunkSize)+1
	}
	rows, err := conn.Query(ctx, sqlStored, large, last, octets)
	if err != nil {
		return nil, fmt.Errorf("find bodies: %w", err)
	}
	whole, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		return nil, fmt.Errorf("find bodies: %w", err)
	}
	return whole, nil
}

func loadSmall(ctx context.Context, conn *pgx.Conn, small [][16]byte, sizes map[uuid.UUID]int64, found map[uuid.UUID]Body) error {
	if len(small) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, sqlSmall, small)
	if err != nil {
		return fmt.Errorf("load bodies: %w", err)
	}
	var id uuid.UUID
	var n int
	var chunk pgtype.DriverBytes // points into the connection's buffer
	data, read := make(map[uuid.UUID][]byte, len(small)), make(map[uuid.UUID]int64, len(small))
	_, err = pgx.ForEachRow(rows, []any{&id, &n, &chunk}, func() error {
		if data[id] == nil {
			data[id] = make([]byte, sizes[id])
		}
		if at := n * ChunkSize; at >= 0 && at <= len(data[id]) {
			read[id] += int64(copy(data[id][at:], chunk))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load bodies: %w", err)
	}
	for id, b := range data {
		if read[id] == sizes[id] {
			found[id] = New(b)
		}
	}
	return nil
}
