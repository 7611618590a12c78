// No write that is planned crosses 4 KiB or is longer than the maximum payload, and no more is planned than
// the drain has and than the host's ring has room for.
//
// block: planner
// mode: prove
// depth: 3
// free: parameters, progress, places
// mutant: the boundary is taken for a line further
//   cut = to_boundary[(32'h0)+:(3)] + 32'h1; => cut = to_boundary[(32'h0)+:(3)] + 32'h2;
// mutant: always the largest payload
//   if (max_payload != 32'h0) => if (1'b1)
// mutant: the room of the host's ring isn't looked at
//   free$q[(32'h6)+:(26)] < ((cut) & 26'h3ffffff) => 1'b0

// RAMs are free, bounded by what a RAM does: a word stays until it is written, and what all writes have in
// common all words have. (Zero at power-up.)
reg [2:0] address_before = 0;
reg written_before = 0;
reg steady = 0;
reg [63:0] bytes_before;
reg [7:0] place_before;
reg [2:0] first_payload;
reg begun = 0;

wire [31:0] ring = 32'h1 << size_log$q;
wire chosen_on = step$q >= Step$Free && step$q <= Step$Emit;
wire later = step$q == Step$Cut || step$q == Step$Emit;
wire [2:0] planned_lines = planned$data[66:64];
wire [63:0] planned_place = planned$data[63:0];
wire [7:0] undrained = target - places$read_data;

always @(posedge clock) begin
    begun <= 1;
    address_before <= progress$read_address;
    written_before <= progress$write_enable;
    steady <= progress$read_address == address_before && !written_before;
    bytes_before <= progress$read_data;
    place_before <= places$read_data;
    first_payload <= max_payload;
    // A read of the same address as before, with nothing written in between, gives the same.
    assume (!steady || (progress$read_data == bytes_before && places$read_data == place_before));
    assume (progress$read_data[5:0] == 0);
    assert (!progress$write_enable || progress$write_data[5:0] == 0);
    assert (progress$read_address == places$read_address && progress$write_address == places$write_address);
    assert (progress$write_enable == places$write_enable);

    // Environment: the maximum payload is a constant.
    assume (!begun || max_payload == first_payload);

    assert (step$q <= Step$Clear);
    assert (!(chosen_on && size_valid$q) || (size_log$q >= 16 && size_log$q <= 30));
    assert (!(step$q > Step$Size && step$q <= Step$Emit) || !written_before);
    assert (!(step$q > Step$Size && step$q <= Step$Emit) || address_before == chosen$q);
    assert (!(step$q > Step$Space && step$q <= Step$Emit) || steady);
    assert (!later || free$q == 0 || (size_valid$q && free$q <= ring));
    assert (!(step$q == Step$Free && size_valid$q) || offset$q == (progress$read_data[31:0] & (ring - 1)));
    assert (!(later && size_valid$q) || place$q[11:0] == progress$read_data[11:0]);
    assert (!(step$q == Step$Emit && lines$q != 0) || size_valid$q);
    assert (!(step$q == Step$Emit) || lines$q <= (max_payload == 0 ? 2 : 4));
    assert (!(step$q == Step$Emit) || {20'h0, lines$q, 6'h0} <= free$q);
    assert (!(step$q == Step$Emit) || {4'b0, place$q[11:6]} + lines$q <= 64 || lines$q == 0);

    if (planned$push && planned_lines != 0) begin
        assert (planned_place[5:0] == 0);
        assert (planned_lines * 64 <= (max_payload == 0 ? 128 : 256));
        assert ({1'b0, planned_place[11:0]} + planned_lines * 64 <= 4096);
        assert (planned_lines * 64 <= free$q);
    end
    // The mailbox is a word of eight bytes, aligned.
    if (planned$push && planned_lines == 0) assert (planned_place[2:0] == 0);
end
