// Stamps strictly increase, numbers are consecutive above their floor, and the uplink has one owner.
//
// block: arbiter
// mode: prove
// depth: 3
// mutant: a leaf time equal to the last stamp is taken
//   candidate$q <= last$q => candidate$q < last$q
// mutant: the uplink is given away while it is taken
//   taken$d = 1'b1; => taken$d = 1'b0;

wire granted = write_grant$0 | write_grant$1 | stamp_grant$0 | stamp_grant$1;
// An entry gets a number with its frame, or, where its write is held, with its stamp.
wire written = write_grant$0 | write_grant$1 | stamp_grant$0 & stamp_entry$0 | stamp_grant$1 & stamp_entry$1;
wire framed = write_grant$0 | write_grant$1 | pass_grant$0 | pass_grant$1;
wire [2:0] grants =
    write_grant$0 + write_grant$1 + stamp_grant$0 + stamp_grant$1 + pass_grant$0 + pass_grant$1;

// Zero: nothing given yet. The floors are part of it: what is set is as if it had been given.
reg [63:0] given_stamp = 0;
reg [63:0] given_number = 0;
reg on_wire = 0;

always @(posedge clock) begin
    // Environment: neither stamps nor numbers come to an end; a frame ends only if there is one.
    assume (!last$q[63] && !last_given$q[63] && !leaf_time$0[63] && !leaf_time$1[63]);
    assume (!stamp_floor[63] && !number_floor[63]);
    assume (!frame_done || on_wire);
    // The host sets the floors while writes are closed; numbers may have a hole otherwise.
    assume (!(stamp_floor_set | number_floor_set) || !(write_request$0 | write_request$1));
    assume (!(stamp_floor_set | number_floor_set) || !(stamp_request$0 & stamp_entry$0 | stamp_request$1 & stamp_entry$1));

    if (granted) given_stamp <= stamp;
    if (written) given_number <= number;
    if (stamp_floor_set && stamp_floor > given_stamp) given_stamp <= stamp_floor;
    if (number_floor_set && number_floor > given_number) given_number <= number_floor;
    if (framed) on_wire <= 1;
    else if (frame_done) on_wire <= 0;

    assert (last$q >= given_stamp);
    assert (last_given$q == given_number);
    assert (taken$q == on_wire);
    assert (phase$q < 3);
    assert (phase$q != 2 || candidate$q > last$q);
    assert (grants <= 1);
    assert (!granted || stamp > given_stamp);
    assert (!written || number == given_number + 1);
    assert (!framed || !on_wire);
end
