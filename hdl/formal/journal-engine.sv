// A ring never overruns, and nothing is forwarded without room for its entry and its completion.
//
// block: journal-engine
// mode: prove
// depth: 3
// free: ring
// mutant: no room is kept for the completion
//   << 32'h3) + 32'h2; => << 32'h3);
// mutant: a watermark is written whatever the room
//   (~marked$q) & room_for_mark => (~marked$q)
// mutant: a write is admitted whatever the room
//   ask = clear & slot_free & room; => ask = clear & slot_free;
// mutant: the payload is written to the end of the frame, whatever the header says
//   (((word_index$q) & 15'h7fff) <= payload_last) => (1'b1)

localparam [8:0] LINES = 128;

// Environment: the scoreboard counts what was admitted and not yet answered.
reg [4:0] flying = 0;
reg [7:0] last_tail = 0;
reg [7:0] last_head = 0;
reg last_matched = 0;

wire [7:0] fill = head$q - ring_tail;
wire [7:0] was_fill = head$q - last_tail;
wire [7:0] drained = ring_tail - last_tail;
wire streaming = state$q == EngineState$Stream;
wire in_header = state$q == EngineState$Header;
wire entry = kind$q == after;
wire mark = kind$q == watermark;
wire [8:0] entry_lines = {held_info$q[36:32], 3'b000} + 1;
// Lines of the record that is under way, as far as they aren't reserved as a completion already.
wire [8:0] under_way =
    streaming | (in_header & entry) ? entry_lines : (state$q == EngineState$Stamp | in_header) & mark ? 1 : 0;
wire [9:0] reserved = fill + flying + under_way;
// Where the next word goes, from the record's first.
wire [9:0] offset = place$q - {head$q[6:0], 3'b000};
wire [10:0] payload_words = {held_info$q[36:32], 6'b000000};
wire [10:0] beyond = word_index$q <= 5 ? 0 : word_index$q - 5;
wire [9:0] write_offset = write_at - {head$q[6:0], 3'b000};

always @(posedge clock) begin
    last_tail <= ring_tail;
    last_matched <= matched & !matched_take;
    flying <= flying + write_grant - matched_take;
    assume (in_flight == flying);
    assume (!slot_free || flying < 16);
    assume (!matched || flying != 0);
    assume (!last_matched || matched);
    // The drain goes forward, and no further than to the head.
    assume (drained <= was_fill);
    // The arbiter grants what is asked for; a write is one to 17 sectors, and its frame fits the buffer.
    assume (!write_grant || write_request);
    assume (!stamp_grant || stamp_request);
    assume (!waiting || (write_info[36:32] >= 1 && write_info[36:32] <= 17));
    assume (!(word_filled && word_index$q >= 2046) || word[67]);

    assert (flying <= 16);
    assert (state$q <= EngineState$Header);
    assert (!streaming || entry);
    assert (!(streaming | (in_header & entry)) || (held_info$q[36:32] >= 1 && held_info$q[36:32] <= 17));
    assert (!(state$q == EngineState$Stamp) || (kind$q == completion || mark));
    assert (!in_header || kind$q == completion || mark || entry);
    assert (!((state$q == EngineState$Stamp || in_header) && kind$q == completion) || matched);
    assert (!in_header || step$q <= 8);
    assert (!in_header || offset == (step$q < 7 ? step$q : 7));
    assert (state$q == EngineState$Header || state$q == EngineState$Idle || step$q == 0);
    assert (!streaming || offset == 8 + (beyond > payload_words ? payload_words : beyond));

    // Invariant 1 of the design: what is used, promised and under way fits, with three lines to spare.
    assert (fill <= LINES);
    assert (reserved + 3 <= LINES);
    // A word only goes where nothing is that hasn't been drained.
    assert (!write_word || {fill, 3'b000} + write_offset < {LINES, 3'b000});
    // Nothing is forwarded that has no room.
    assert (!uplink_valid || (streaming && fill + entry_lines + flying <= LINES));
end
