// A ring never overruns: what is used, reserved and kept fits in it, whatever comes before the next drain.
//
// block: ring-room
// mode: prove
// depth: 3
// mutant: no room is kept beside reservations
//   room = needed <= ring_lines; => room = needed <= (ring_lines + 2);
// mutant: what a held write reserved is forgotten
//   + ((held) & 16'hffff) =>
// mutant: a gap's room counts as free as soon as the drain moves
//   gap_taken$d = gap_taken$q & (past_gap < used); => gap_taken$d = gap_taken$q & ~commit;
// mutant: a watermark is let in whatever the room
//   mark_room = ~mark_taken$q | (kept < ring_lines); => mark_room = 1'b1;

localparam [9:0] LINES = 128;

// What comes: an entry, a watermark, a gap, a late answer, a completion, or the entry of a held write.
(* anyseq *) reg [2:0] what;
// A write is held, which reserves its lines; or the held one is dropped.
(* anyseq *) reg hold;
(* anyseq *) reg drop;

// Environment: completions that are still to come, and the lines of the held write.
reg [6:0] promised = 0;
reg [8:0] holds = 0;
reg [7:0] last_tail = 0;

wire [7:0] fill = committed$q - tail;
wire [7:0] was_fill = committed$q - last_tail;
wire [7:0] drained = tail - last_tail;

// Lines of the kept records that are still in the ring; the rest of their rooms is owed.
wire [7:0] mark_at = committed$q - mark_end$q;
wire [7:0] gap_at = committed$q - gap_end$q;
wire [7:0] late_at = committed$q - late_end$q;
wire mark_in = mark_taken$q & (mark_at < fill);
wire gap_in = gap_taken$q & (gap_at < fill);
wire late_in = late_taken$q & (late_at < fill);
wire [1:0] gap_left = !gap_in ? 0 : fill - gap_at >= 2 ? 2 : 1;
wire [9:0] owed = !mark_in + (2 - gap_left) + !late_in;
wire [9:0] total = fill + promised + holds + owed;

always @(posedge clock) begin
    last_tail <= tail;
    // The drain goes forward, and no further than to the head.
    assume (drained <= was_fill);
    assume (reserved == promised && held == holds);
    assume (wanted >= 2 && wanted <= 300);
    assume (!commit || what <= 5);
    assume (!commit || commit_mark == (what == 1));
    assume (!commit || commit_gap == (what == 2));
    assume (!commit || commit_late == (what == 3));
    assume (!commit || what != 0 || (room && commit_lines == wanted - 1));
    assume (!commit || what != 1 || (mark_room && commit_lines == 1));
    assume (!commit || what != 2 || (gap_room && commit_lines == 2));
    assume (!commit || what != 3 || (late_room && commit_lines == 1));
    assume (!commit || what != 4 || (promised != 0 && commit_lines == 1));
    assume (!commit || what != 5 || (holds != 0 && commit_lines == holds - 1));
    assume (!hold || (!commit && room && holds == 0));
    assume (!drop || (!commit && !hold));
    if (commit && (what == 0 || what == 5)) promised <= promised + 1;
    if (commit && what == 4) promised <= promised - 1;
    if (commit && what == 5 || drop) holds <= 0;
    if (hold) holds <= wanted;

    // Invariant 1 of the design.
    assert (fill <= LINES);
    assert (total <= LINES);
    assert (holds == 0 || holds >= 2);
    // The kept records lie beside each other.
    assert (!(mark_in & late_in) || mark_at != late_at);
    assert (!(mark_in & gap_in) || mark_at + 1 <= gap_at || gap_at + 2 <= mark_at);
    assert (!(late_in & gap_in) || late_at + 1 <= gap_at || gap_at + 2 <= late_at);
end
